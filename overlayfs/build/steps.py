"""What does each instruction of a stage do? RUN, COPY and ADD become steps; the rest edits the configuration."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Final

from ..container.runtime import Network
from ..image.oci.errors import InvalidError
from ..image.oci.instructions import DEFAULT_SHELL, environment
from ..image.oci.limits import Limits
from ..image.store.lowers import lower_directories
from ..image.store.store import Image
from .caches import cache_called
from .dockerfile.lines import Heredoc
from .dockerfile.parser import Instruction, raw_words
from .files.copying import Copying
from .files.downloads import fetch, is_remote
from .files.patterns import Ignored
from .files.sources import Tree, digest_items
from .reports import Output
from .request import PROXIES
from .run_mounts import MountPlan, parse_mount, ssh_target
from .running import Command, run_command
from .sandbox import Sandbox
from .stage import Building

_NETWORKS: Final[Mapping[str, Network]] = {"default": Network.HOST, "host": Network.HOST, "none": Network.NONE}


def run_instruction(building: Building, instruction: Instruction) -> None:
    """Run one instruction of a stage. Raises ImageError."""
    match instruction.name:
        case "RUN":
            _run(building, instruction)
        case "COPY" | "ADD":
            _copy(building, instruction)
        case "WORKDIR":
            building.make_directory(instruction)
        case _:
            building.configure(instruction)


# -- RUN


def _run(building: Building, instruction: Instruction) -> None:
    request, store = building.around.request, building.around.store
    network_name = building.lexer.expand(instruction.flag("network") or request.network)
    network = _NETWORKS.get(network_name)
    if network is None:
        raise InvalidError(f"--network={network_name}: one of {', '.join(_NETWORKS)}")
    if instruction.flag("security") not in (None, "sandbox"):
        raise InvalidError("--security=insecure is not supported: nothing is run with more rights")
    mounts = _numbered([_planned(building, text) for text in instruction.flags.get("mount", ())])
    words, scripts = _words(building, instruction)
    config = building.draft.config
    declared = {name: value for name, value in building.arguments.items() if name not in environment(config)}
    proxies = {name: value for name, value in request.arguments.items() if name in PROXIES}
    agents = [ssh_target(plan, config) for plan in mounts if plan.kind == "ssh" and plan.source]
    sockets = {"SSH_AUTH_SOCK": agents[0]} if agents and "SSH_AUTH_SOCK" not in building.variables else {}
    secrets = _secrets_in_environment(mounts)
    command = Command(
        words,
        {**proxies, **declared, **sockets, **secrets},
        scripts,
        mounts,
        network,
        request.process_limit,
        request.hosts,
    )

    def step(sandbox: Sandbox, output: Output) -> bytes:
        status = run_command(store, sandbox, config, command, output)
        return str(status).encode() if status else b""

    visible = {name: value for name, value in declared.items() if name not in PROXIES}
    facts = (words, tuple(scripts.items()), tuple(sorted(visible.items())), network.value, request.hosts, config)
    sources = tuple(repr((plan.kind, plan.options, _identity(building, plan))) for plan in mounts)
    trees = tuple(plan.source for plan in mounts if plan.source is not None)
    building.layer(instruction, step, trees, repr(facts), *sources)


def _words(building: Building, instruction: Instruction) -> tuple[tuple[str, ...], dict[str, str]]:
    """The words of the command, and scripts that it needs as files: a here-document alone is a script."""
    if instruction.listed is not None:
        if not instruction.listed:
            raise InvalidError("RUN [] runs nothing")
        return instruction.listed, {}
    shell = tuple(building.draft.config.shell or DEFAULT_SHELL)
    texts = instruction.heredocs
    if len(texts) == 1 and instruction.text == texts[0].written:
        content = texts[0].content
        if content.startswith("#!"):
            name = texts[0].name
            if "/" in name or name in (".", ".."):
                raise InvalidError(f"the heredoc {name} is run as a file of that name, which has no slash")
            return (f"/dev/pipes/{name}",), {name: content}
        return (*shell, content), {}
    return (*shell, instruction.text + instruction.here_documents + ("\n" if texts else "")), {}


def _numbered(plans: list[MountPlan]) -> list[MountPlan]:
    agents = count()
    return [replace(plan, number=next(agents)) if plan.kind == "ssh" else plan for plan in plans]


def _planned(building: Building, text: str) -> MountPlan:
    """A mount with its source: layers, a directory or a file of the host."""
    around = building.around
    plan = replace(parse_mount(building.lexer.expand(text)), limits=around.store.limits)
    if plan.options.get("from"):
        image = around.source(plan.options["from"], building.planned.stage.place)
        plan = replace(plan, lowers=tuple(lower_directories(around.store, image)))
    match plan.kind:
        case "bind" if not plan.lowers:
            tree = around.context if around.context.ignored.rules else None
            return replace(plan, source=around.context_path, tree=tree)
        case "cache":
            name = plan.options.get("id") or plan.options["target"]
            return replace(plan, source=cache_called(around.store, name))
        case "secret":
            return replace(plan, secret=around.request.secrets.get(plan.secret_name))
        case "ssh":
            return replace(plan, source=around.request.ssh.get(plan.options.get("id", "default")))
    return plan


def _secrets_in_environment(mounts: list[MountPlan]) -> dict[str, str]:
    """Secrets that the command gets as variables; they are no part of the cache's key."""
    found = {}
    for plan in mounts:
        if plan.kind == "secret" and plan.options.get("env") and plan.secret is not None:
            found[plan.options["env"]] = plan.secret.decode("utf-8", "surrogateescape").removesuffix("\n")
    return found


def _identity(building: Building, plan: MountPlan) -> str:
    """What of a mount's source decides whether the step must run again. Caches and secrets do not."""
    if plan.kind != "bind":
        return ""
    if plan.options.get("from"):
        return building.around.source(plan.options["from"], building.planned.stage.place).id
    path = plan.options.get("source", "/")
    return repr([digest_items(building.around.context.read(found)) for found in building.around.context.find(path)])


# -- COPY and ADD


def _copy(building: Building, instruction: Instruction) -> None:
    around = building.around
    copying, remote = _copying(building, instruction)
    source = instruction.flag("from")
    image = None if source is None else around.source(source, instruction.place)
    if source is not None and copying.texts:
        raise InvalidError("a here-document does not come --from somewhere")
    if remote:
        _add_remote(building, instruction, copying, remote)
        return
    identity = image.id if image else copying.digest(around.context)
    facts = copying.facts

    def step(sandbox: Sandbox, _: Output) -> bytes:
        tree = around.context if image is None else _tree_of(sandbox, building, image)
        copying.do(tree, sandbox.inside, around.store.limits)
        return b""

    trees = (around.context_path,) if image is None else ()
    building.layer(instruction, step, trees, facts, identity)


def _tree_of(sandbox: Sandbox, building: Building, image: Image) -> Tree:
    """The tree of a stage or an image, mounted for the step."""
    top = sandbox.mount(lower_directories(building.around.store, image))
    root = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    sandbox.stack.callback(os.close, root)
    return Tree(root, "the stage or image it comes from", keeps_owners=True)


def _add_remote(building: Building, instruction: Instruction, copying: Copying, remote: tuple[str, ...]) -> None:
    """ADD of URLs and git repositories: fetched first, so that what they hold is part of the key."""
    around = building.around
    with around.store.staging() as staged:
        checksum = building.lexer.expand(instruction.flag("checksum") or "") or None
        names = tuple(_fetched(staged, source, instruction, checksum, around.store.limits) for source in remote)
        root = os.open(staged, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fetched = Tree(root, "what was fetched")
            local = around.context
            identity = copying.digest(local) + repr([digest_items(fetched.read(name)) for name in names])

            def step(sandbox: Sandbox, _: Output) -> bytes:
                if copying.paths or copying.texts:
                    copying.do(local, sandbox.inside, around.store.limits)
                unpacks = instruction.is_set("unpack")  # what was fetched is unpacked only if this is asked for
                copying.with_paths(names, unpacks=unpacks).do(fetched, sandbox.inside, around.store.limits)
                return b""

            facts = (copying.facts, str(instruction.is_set("unpack")), identity)
            building.layer(instruction, step, (around.context_path, staged), *facts)
        finally:
            os.close(root)


def _fetched(staged: Path, source: str, instruction: Instruction, checksum: str | None, limits: Limits) -> str:
    """The path, below `staged`, of what a source is."""
    place = staged.resolve() / str(len(os.listdir(staged)))
    place.mkdir()
    found = fetch(source, place, limits, checksum=checksum, keeps_git=instruction.is_set("keep-git-dir"))
    return str(found.relative_to(staged.resolve()))


def _copying(building: Building, instruction: Instruction) -> tuple[Copying, tuple[str, ...]]:
    """The step, and the sources of ADD that have to be fetched first."""
    lexer = building.lexer
    listed = instruction.listed
    raw = list(listed) if listed is not None else raw_words(instruction.text)
    if len(raw) < 2:
        raise InvalidError(f"{instruction.name} needs a source and a destination")
    texts = {heredoc.written: heredoc for heredoc in instruction.heredocs}
    sources = [word for word in raw[:-1] if word not in texts]
    paths = [lexer.expand(word) for word in sources]
    remote = tuple(path for path in paths if instruction.name == "ADD" and is_remote(path))
    target = lexer.expand(raw[-1])
    if not target or not all(paths):
        raise InvalidError(f"{instruction.name}: a source or the destination is empty")
    excluded = Ignored.of(lexer.expand(text) for text in instruction.flags.get("exclude", ()))
    copying = Copying(
        tuple(path for path in paths if path not in remote),
        tuple((heredoc.name, _text(building, heredoc)) for word in raw[:-1] if (heredoc := texts.get(word))),
        building.path_in_image(target),
        lexer.expand(instruction.flag("chown") or ""),
        lexer.expand(instruction.flag("chmod") or ""),
        instruction.is_set("parents"),
        instruction.name == "ADD" and instruction.flag("unpack") != "false",
        excluded,
        (building.around.request.epoch or 0) * 1_000_000_000,
    )
    return copying, remote


def _text(building: Building, heredoc: Heredoc) -> str:
    return building.lexer.expand_text(heredoc.content) if heredoc.is_expanded else heredoc.content
