"""Making and removing names, over every state that a name can be in."""

from __future__ import annotations

import errno

from ..case import ALL_FORMATS, MOUNTED, Case, Step
from ..steps import (
    chmod,
    chown,
    close,
    create,
    link,
    make_symlink,
    missing,
    mkblock,
    mkchar,
    mkdir,
    mkfifo,
    mkfile,
    mksocket,
    names,
    open_,
    pwrite,
    read,
    rename,
    rmdir,
    unlink,
    write_file,
)
from ..tree import (
    Node,
    Tree,
    absent,
    block,
    char,
    directory,
    fifo,
    file,
    hardlink,
    opaque_dir,
    socket,
    symlink,
    whiteout,
)
from .states import LOW, STATES, UP, State, at

KEPT = {"kept": file(b"kept")}


def on_state(name: str, state: State, steps: list[Step], view: Tree, upper_after: Tree) -> Case:
    """A case whose name `x` is in the given state; `kept` and the directory `d` are beside it."""
    return Case(
        f"{name}-on-{state.id}",
        [at("x", state.top), {**at("x", state.bottom), **KEPT}],
        {**KEPT, **view},
        steps,
        upper=at("x", state.upper),
        upper_after=upper_after,
        formats=ALL_FORMATS,
        cell=True,
    )


def making(name: str, step: Step, node: Node) -> list[Case]:
    """The step makes `node` as `x` where nothing is, and says EEXIST elsewhere."""
    cases = []
    for state in STATES:
        if state.exists:
            cases.append(on_state(name, state, [step.fails(errno.EEXIST)], at("x", state.visible), {}))
        else:
            after = {"x": node}
            if node == directory():
                # only one that hides something must be opaque
                after = {"x": opaque_dir()} if state.id == "deleted-directory" else {}
            cases.append(on_state(name, state, [step], {"x": node}, after))
    return cases


def unlinking() -> list[Case]:
    cases = []
    for state in STATES:
        error = errno.ENOENT if not state.exists else errno.EISDIR if state.is_directory else 0
        cases.append(_removing("unlink", unlink("x"), state, error))
    return cases


def removing_directories() -> list[Case]:
    cases = []
    for state in STATES:
        error = 0
        if not state.exists:
            error = errno.ENOENT
        elif not state.is_directory:
            error = errno.ENOTDIR
        elif state.is_full:
            error = errno.ENOTEMPTY
        cases.append(_removing("rmdir", rmdir("x"), state, error))
    return cases


def _removing(name: str, step: Step, state: State, error: int) -> Case:
    if error:
        return on_state(name, state, [step.fails(error)], at("x", state.visible), {})
    after = {"x": whiteout()} if state.shows_lower else {}
    if not state.top and not state.bottom:
        after = {"x": absent()}
    return on_state(name, state, [step, missing("x"), names("", "kept")], {}, after)


def remaking() -> list[Case]:
    """Remove what is there and make a directory of the same name: nothing of the old may show."""
    cases = []
    for state in STATES:
        if state.exists and not state.is_full:
            gone = rmdir("x") if state.is_directory else unlink("x")
            steps = [gone, mkdir("x"), names("x"), mkdir("x/n")]
            cases.append(on_state("remake-directory", state, steps, {"x/n": directory()}, {}))
            steps = [gone, *write_file("x", b"new")]
            cases.append(on_state("remake-file", state, steps, {"x": file(b"new")}, {"x": file(b"new")}))
    return cases


def writing() -> list[Case]:
    """open(O_CREAT|O_TRUNC) and write, over every state."""
    cases = []
    for state in STATES:
        if state.id in ("lower-symlink", "lower-fifo"):
            continue
        if state.is_directory:
            flags = write_file("x", b"")[0]
            cases.append(on_state("write", state, [flags.fails(errno.EISDIR)], at("x", state.visible), {}))
            continue
        old = state.visible.get("", file())
        node = file(b"written", old.mode, old.uid, old.gid)
        cases.append(on_state("write", state, write_file("x", b"written"), {"x": node}, {"x": node}))
    return cases


def _tree_removal(state: State) -> list[Step]:
    """What `rm -r x` does."""
    paths = {part for path in state.visible for part in _above(path)} | set(state.visible) - {""}
    steps = []
    for path in sorted(paths, key=lambda path: (-path.count("/"), path)):
        is_file = path in state.visible and state.visible[path] != directory()
        steps.append(unlink(f"x/{path}") if is_file else rmdir(f"x/{path}"))
    return [*steps, rmdir("x")]


def _above(path: str) -> list[str]:
    return [path.rsplit("/", 1)[0]] if "/" in path else []


def removing_trees() -> list[Case]:
    cases = []
    for state in STATES:
        if not state.is_directory:
            continue
        after = {"x": whiteout()} if state.shows_lower else {"x": absent()}
        cases.append(on_state("remove-tree", state, _tree_removal(state), {}, after))
        steps = [*_tree_removal(state), mkdir("x"), *write_file("x/a", b"new")]
        cases.append(on_state("remove-and-remake-tree", state, steps, {"x/a": file(b"new")}, {}))
    return cases


def linking() -> list[Case]:
    cases = []
    for state in STATES:
        if state.exists:
            steps = [link("kept", "x").fails(errno.EEXIST)]
            cases.append(on_state("link", state, steps, at("x", state.visible), {}))
        else:
            cases.append(on_state("link", state, [link("kept", "x")], {"x": hardlink("kept")}, {}))
    return cases


MATRICES = [
    *making("mkdir", mkdir("x"), directory()),
    *making("symlink", make_symlink("target", "x"), symlink("target")),
    *making("mkfifo", mkfifo("x"), fifo()),
    *making("mknod", mkfile("x"), file()),
    *making("create", create("h", "x"), file()),
    *unlinking(),
    *removing_directories(),
    *remaking(),
    *writing(),
    *removing_trees(),
    *linking(),
]


def simple(
    name: str,
    steps: list[Step],
    view: Tree,
    lower: Tree | None = None,
    upper_after: Tree | None = None,
    upper: Tree | None = None,
) -> Case:
    """A case over one lower layer, in every write format."""
    return Case(name, [lower or {}], view, steps, upper or {}, upper_after or {}, formats=ALL_FORMATS)


SINGLES = [
    simple("make-socket", [mksocket("k", 0o600)], {"k": socket(0o600)}),
    simple("make-null-device", [mkchar("c", 1, 3, 0o666)], {"c": char(1, 3, 0o666)}),
    simple("make-block-device", [mkblock("b", 7, 300, 0o660)], {"b": block(7, 300, 0o660)}),
    simple("make-device-with-large-numbers", [mkchar("c", 511, 70000)], {"c": char(511, 70000)}),
    simple("make-block-0-0", [mkblock("b", 0, 0)], {"b": block(0, 0)}),
    simple("make-whiteout-device", [mkchar("c", 0, 0).fails(errno.EPERM), missing("c"), names("")], {}, upper_after={"c": absent()}),
    Case("make-whiteout-device-over-lower", [{"f": LOW}], {"f": LOW}, [mkchar("f", 0, 0).fails(errno.EEXIST), read("f", b"low")], targets=MOUNTED),
    simple("make-in-lower-directory", write_file("a/b/c/new", b"n"), {"a/b/c/new": file(b"n"), "a/b/c/old": LOW}, {"a/b/c/old": LOW}),
    simple("copied-up-parents-keep-attributes", write_file("d/e/n", b""), {"d": directory(0o2751, 3, 4, xattrs={"user.k": b"v"}), "d/e": directory(0o700, 5, 6), "d/e/n": file(b"", gid=0), "d/o": LOW}, {"d": directory(0o2751, 3, 4, xattrs={"user.k": b"v"}), "d/e": directory(0o700, 5, 6), "d/o": LOW}, {"d": directory(0o2751, 3, 4), "d/e": directory(0o700, 5, 6)}),
    simple("unlink-copies-up-parents-only", [unlink("d/e/f")], {"d/e": directory(0o700, 1, 2), "d/g": LOW}, {"d/e": directory(0o700, 1, 2), "d/e/f": file(b"x" * 100_000), "d/g": LOW}, {"d/e/f": whiteout(), "d/e": directory(0o700, 1, 2), "d/g": absent()}),
    simple("mkdir-deep", [mkdir("a"), mkdir("a/b"), mkdir("a/b/c")], {"a/b/c": directory()}),
    simple("mkdir-in-missing", [mkdir("a/b").fails(errno.ENOENT)], {}),
    simple("mkdir-below-file", [mkdir("f/b").fails(errno.ENOTDIR)], {"f": LOW}, {"f": LOW}),
    simple("rmdir-after-emptying-lower", [unlink("d/f"), rmdir("d"), mkdir("d"), names("d")], {"d": directory()}, {"d/f": LOW}, {"d": opaque_dir()}),
    simple("delete-and-recreate-file", [unlink("f"), *write_file("f", b"new")], {"f": file(b"new")}, {"f": LOW}, {"f": file(b"new")}),
    simple("delete-twice", [unlink("f"), unlink("f").fails(errno.ENOENT), *write_file("f", b"n"), unlink("f"), missing("f")], {}, {"f": LOW}, {"f": whiteout()}),
    simple("file-becomes-directory", [unlink("x"), mkdir("x"), *write_file("x/n", b"n")], {"x/n": file(b"n")}, {"x": LOW}),
    simple("directory-becomes-file", [unlink("x/f"), rmdir("x"), *write_file("x", b"n")], {"x": file(b"n")}, {"x/f": LOW}, {"x": file(b"n")}),
    simple("directory-becomes-symlink", [unlink("x/f"), rmdir("x"), make_symlink("y", "x")], {"x": symlink("y")}, {"x/f": LOW}),
    simple("no-whiteout-inside-a-new-directory", [unlink("d/a"), rmdir("d"), mkdir("d"), *write_file("d/a", b"n"), unlink("d/a")], {"d": directory()}, {"d/a": LOW}, {"d": opaque_dir(), "d/a": absent()}),
    simple("no-whiteout-for-an-upper-file", [*write_file("n", b""), unlink("n")], {"f": LOW}, {"f": LOW}, {"n": absent()}),
    simple("delete-device-without-driver", [unlink("c"), unlink("b"), missing("c")], {}, {"c": char(250, 250), "b": block(249, 3)}, {"c": whiteout(), "b": whiteout()}),
    simple("rename-device-without-driver", [rename("c", "e"), rename("b", "g")], {"e": char(250, 250, 0o600, 4, 5), "g": block(249, 3)}, {"c": char(250, 250, 0o600, 4, 5), "b": block(249, 3)}, {"c": whiteout(), "e": char(250, 250, 0o600, 4, 5)}),
    simple("chmod-device-without-driver", [chmod("c", 0o600), chown("c", 3, 4)], {"c": char(250, 250, 0o600, 3, 4)}, {"c": char(250, 250)}),
    simple("delete-fifo-and-socket", [unlink("p"), unlink("k")], {}, {"p": fifo(), "k": socket()}, {"p": whiteout(), "k": whiteout()}),
    simple("whole-tree-emptied", [unlink("a/b/f"), rmdir("a/b"), rmdir("a"), unlink("g")], {}, {"a/b/f": LOW, "g": LOW}, {"a": whiteout(), "g": whiteout()}),
    simple("unlink-root-child-of-upper-only", [unlink("u")], {}, {}, {"u": absent()}, {"u": UP}),
    simple("rmdir-root-is-busy-or-refused", [rmdir("d").fails(errno.ENOTEMPTY)], {"d/f": LOW}, {"d/f": LOW}),
    simple("symlink-long-target", [make_symlink("t" * 4000, "s")], {"s": symlink("t" * 4000)}),
    simple("symlink-odd-target", [make_symlink("../\udcff\n", "s")], {"s": symlink("../\udcff\n")}),
    simple("open-directory-for-writing", [open_("h", "d", 1).fails(errno.EISDIR)], {"d/f": LOW}, {"d/f": LOW}),
    simple("create-write-read", [create("h", "n", 0o600), pwrite("h", b"hello"), close("h"), read("n", b"hello")], {"n": file(b"hello", 0o600)}),
]  # fmt: skip

CASES = [*MATRICES, *SINGLES]
