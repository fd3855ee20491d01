"""`overlayfs setup ENGINE`: tell a container engine to use our mount program, and take that back.

The backup is made before the first change and holds the file as it was; it is empty where there was no file. Undoing
takes back only our own settings where the user has changed the file since.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from overlayfs.cli.asking import confirm
from overlayfs.cli.host import replacing
from overlayfs.cli.host.engines import Engine, Plan, plan_of
from overlayfs.cli.host.settings import Document, get, parsed, put, remove
from overlayfs.cli.host.trial import PROGRAM, installed_program, obstacle_for_others, others_who_may_change, try_mount
from overlayfs.cli.mounts.live import CommandError
from overlayfs.cli.output import safe

BACKUP: Final = ".before-overlayfs"


def set_up(engine: Engine, *, for_user: bool, dry_run: bool, confirmed: bool) -> None:
    """Show the change, try a mount, ask, and make the change. Raises CommandError before anything is written."""
    program = _program()
    plan = plan_of(engine, program, for_user=for_user)
    before = replacing.read(plan.file)
    base = _template(plan) if before is None else before
    after = _with_settings(base, plan)
    makes_link = plan.link is not None and not _leads_to(plan.link, program)
    if before == after and not makes_link:
        print(f"{engine} is set up already: nothing to do")
        return
    _refuse_conflicts(plan, changes_file=before != after)
    _show(plan, base, after)
    if makes_link:
        print(f"link {plan.link} -> {program}")
    if dry_run:
        return
    try_mount([str(program)])
    print(f"A trial mount by {program} worked.", *_warnings(program, plan, for_user), sep="\n")
    _ask(plan, before, confirmed)
    with _permission(plan, for_user):
        if makes_link:
            _link(plan, program)
        if before != after:
            _write(plan.file, before, after)
    print(*plan.notes, sep="\n")
    print(f"To undo: overlayfs setup {engine}{' --user' if for_user else ''} --undo")


def undo(engine: Engine, *, for_user: bool, dry_run: bool, confirmed: bool) -> None:
    """Show what is taken back, ask, put the settings of before back, and remove our link."""
    plan = plan_of(engine, installed_program() or Path(PROGRAM), for_user=for_user)
    before, now = replacing.read(_backup_of(plan.file)), replacing.read(plan.file)
    has_link = plan.link is not None and _is_our_link(plan.link)
    if before is None and not has_link:
        print(f"{engine} is not set up: nothing to undo")
        return
    after = _undone(now, before, plan)
    if after != (now or ""):
        _show(plan, now or "", after)
    if has_link:
        print(f"remove link {plan.link}")
    if dry_run:
        return
    _ask(plan, now, confirmed)
    with _permission(plan, for_user):
        if after != (now or ""):
            _put_back(plan.file, after)
        replacing.delete(_backup_of(plan.file))
        if has_link and plan.link is not None:
            replacing.delete(plan.link)
    print(*plan.undo_notes, sep="\n")


def _undone(now: str | None, before: str | None, plan: Plan) -> str:
    """The text without us; empty for no file. One that somebody has removed since comes back: it was not for good."""
    if before is None or now is None:
        return now or before or ""
    return _without_settings(now, before, plan)


def _put_back(file: Path, text: str) -> None:
    if text:
        replacing.replace(file, text, like=file if file.exists() else _backup_of(file))
    else:
        replacing.delete(file)


def _ask(plan: Plan, seen: str | None, confirmed: bool) -> None:
    """Let the user confirm what was shown, unless that was done, and make sure that it is what will be replaced."""
    if not confirmed:
        confirm(
            "Change this?",
            unattended="nothing was changed: without a terminal to confirm that, give --yes",
            refused="nothing was changed",
        )
    if replacing.read(plan.file) != seen:
        raise CommandError(f"{plan.file} was changed by another program meanwhile: nothing was written, try again")


@contextmanager
def _permission(plan: Plan, for_user: bool) -> Iterator[None]:
    """Tell a user who may not write what to do."""
    try:
        yield
    except PermissionError as error:
        hint = "" if for_user or os.geteuid() == 0 else ": run it as root, or with --user"
        raise CommandError(f"{Path(error.filename or plan.file).parent}: {error.strerror}{hint}") from None


def _program() -> Path:
    program = installed_program()
    if program is None:
        raise CommandError(f"{PROGRAM} is not installed: pip install overlayfs, or its Debian package")
    return program


def _warnings(program: Path, plan: Plan, for_user: bool) -> Iterator[str]:
    """What root should know of a program that engines are going to run."""
    if not for_user and (others := others_who_may_change(program)):
        yield f"Note: {others} is not root's alone, so others can change what the engine runs as root."
    if plan.is_for_all and (obstacle := obstacle_for_others(program)):
        yield f"Note: other users, whose engines read this file too, cannot start the program: {obstacle}"


def _backup_of(file: Path) -> Path:
    return file.with_name(file.name + BACKUP)


def _template(plan: Plan) -> str:
    return (plan.template is not None and replacing.read(plan.template)) or ""


def _with_settings(text: str, plan: Plan) -> str:
    document = parsed(text, plan.form, str(plan.file))
    _refuse_other_drivers(document, plan)
    wanted = {key: value for key, value in plan.defaults.items() if get(document, key) in (None, "")} | plan.values
    wanted = {key: value for key, value in wanted.items() if get(document, key) != value}
    if not wanted:
        return text
    for key, value in wanted.items():
        put(document, key, value)
    return _checked(plan.form.dump(document, text), text, wanted, plan)


def _checked(after: str, before: str, wanted: dict[tuple[str, ...], Any], plan: Plan) -> str:
    """The new text, read by another parser: it must say what the old one said, and what is wanted."""
    expected = plan.form.read(before) if before.strip() else {}
    for key, value in wanted.items():
        put(expected, key, value)
    if plan.form.read(after) != expected:
        raise CommandError(f"{plan.file} is laid out in a way that cannot be changed safely; change it by hand")
    return after


def _refuse_other_drivers(document: Document, plan: Plan) -> None:
    for key, wanted in plan.required.items():
        if (found := get(document, key)) not in (None, "", wanted):
            raise CommandError(
                f"{plan.file}: {'.'.join(key)} is {safe(repr(found))}, whose images would be hidden; "
                f'set it to "{wanted}" yourself if that is what you want'
            )


def _refuse_conflicts(plan: Plan, *, changes_file: bool) -> None:
    backup = _backup_of(plan.file)
    if changes_file and backup.exists():
        raise CommandError(f"{backup} is there, but {plan.file} lacks these settings: move the backup away first")
    if plan.link is not None and (plan.link.exists() or plan.link.is_symlink()) and not _is_our_link(plan.link):
        raise CommandError(f"{plan.link} is another program: move it away first")


def _without_settings(now: str, before: str, plan: Plan) -> str:
    """The text of before; where the user has changed it since, the text of now without our settings."""
    if now == _with_settings(before or _template(plan), plan):
        return before
    document, earlier = (parsed(text, plan.form, str(plan.file)) for text in (now, before))
    for key, value in plan.values.items():
        if not _is_ours(get(document, key), value):
            continue  # somebody else has set it since
        if get(earlier, key) is None:
            remove(document, key)
        else:
            put(document, key, get(earlier, key))
    return plan.form.dump(document, now)


def _is_ours(found: Any, wanted: str | int) -> bool:
    """Whether we have set this value, perhaps from an installation in another place."""
    return found is not None and (found == wanted or Path(str(found)).name == PROGRAM)


def _show(plan: Plan, before: str, after: str) -> None:
    print(plan.file)
    for line in difflib.unified_diff(before.splitlines(), after.splitlines(), n=1, lineterm=""):
        if not line.startswith(("---", "+++", "@@")):
            print(safe(line.expandtabs(4)))


def _write(file: Path, before: str | None, after: str) -> None:
    backup = _backup_of(file)
    replacing.replace(backup, before or "", like=file)  # which may hold secrets
    replacing.replace(file, after)
    print(f"The file as it was: {backup}" + ("" if before else " (there was none)"))


def _leads_to(link: Path, program: Path) -> bool:
    return link.is_symlink() and link.readlink() == program


def _is_our_link(link: Path) -> bool:
    return link.is_symlink() and link.readlink().name == PROGRAM


def _link(plan: Plan, program: Path) -> None:
    """Make the link; one of ours that leads elsewhere is replaced."""
    assert plan.link is not None
    plan.link.parent.mkdir(parents=True, exist_ok=True)
    if _is_our_link(plan.link):
        plan.link.unlink()
    plan.link.symlink_to(program)
