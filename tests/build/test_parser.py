"""Instructions, their flags, stages, and the faults that a Dockerfile may have."""

from __future__ import annotations

import pytest

from overlayfs.build.dockerfile.lines import DockerfileError
from overlayfs.build.dockerfile.parser import parse_dockerfile
from overlayfs.build.dockerfile.plan import make_plan
from overlayfs.image.oci.errors import InvalidError


def test_flags_are_taken_apart() -> None:
    stage = parse_dockerfile("FROM a\nCOPY --from=b --link --chown=c:d --exclude=*.x --exclude=y s t\n", "D").stages[0]
    (copy,) = stage.instructions
    assert copy.flags == {"from": ("b",), "link": ("true",), "chown": ("c:d",), "exclude": ("*.x", "y")}
    assert copy.text == "s t"
    assert copy.is_set("link")
    assert not copy.is_set("parents")


def test_only_the_first_words_are_flags() -> None:
    stage = parse_dockerfile('FROM a\nRUN echo --mount=x\nCMD --flag\nRUN [ a ]\nRUN ["b"]\n', "D").stages[0]
    run, command, test, listed = stage.instructions
    assert (run.flags, run.text, command.text) == ({}, "echo --mount=x", "--flag")
    assert (test.listed, listed.listed) == (None, ("b",))


def test_stages() -> None:
    found = parse_dockerfile("ARG V=1\nFROM a:$V AS One\nFROM --platform=linux/arm64 one as two\nRUN x\n", "D")
    assert [(stage.base, stage.name, stage.platform) for stage in found.stages] == [
        ("a:$V", "one", None),
        ("one", "two", "linux/arm64"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "D:1:1: there is no FROM"),
        ("RUN a\nFROM b\n", "D:1:1: RUN before the first FROM"),
        ("FROM a\nFOO b\n", "D:2:1: unknown instruction FOO"),
        ("FROM a\nFOO\n", "D:2:1: unknown instruction FOO"),
        ("FROM a\nRUN\n", "D:2:1: RUN needs something"),
        ("FROM a b\n", "D:1:1: FROM is followed by IMAGE"),
        ("FROM a AS 1x\n", "D:1:1: '1x' is no name for a stage"),
        ("FROM a AS x\nFROM b AS X\n", "D:2:1: two stages are called x"),
        ("FROM a\nCOPY --bad=1 x y\n", "D:2:6: COPY has no flag --bad"),
        ("FROM a\nCOPY --link \\\n  --from x y\n", "D:3:3: --from needs a value"),
        ("FROM a\nCOPY --from=a --from=b x y\n", "D:2:15: --from is given twice"),
        ('FROM a\nCMD ["b", 1]\n', "D:2:5: '[\"b\", 1]': a JSON list holds strings and nothing else"),
        ("FROM a\nONBUILD FROM b\n", "D:2:9: ONBUILD cannot be followed by FROM"),
        ("FROM a\nONBUILD ONBUILD RUN b\n", "D:2:9: ONBUILD cannot be followed by ONBUILD"),
    ],
)
def test_faults_have_a_place(text: str, message: str) -> None:
    with pytest.raises(DockerfileError) as caught:
        parse_dockerfile(text, "D")
    assert str(caught.value).startswith(message)


STAGES = "ARG B=base\nFROM $B AS one\nFROM x AS two\nFROM one AS three\nCOPY --from=two a b\nFROM y AS four\n"


@pytest.mark.parametrize(
    ("target", "needed"),
    [("", ["four"]), ("one", ["one"]), ("three", ["one", "two", "three"]), ("2", ["one", "two", "three"])],
)
def test_only_needed_stages_are_planned(target: str, needed: list[str]) -> None:
    plan = make_plan(parse_dockerfile(STAGES, "D"), target, {}, {})
    assert [stage.name for stage in plan.stages] == needed


def test_bases_are_expanded_with_the_arguments_before_from() -> None:
    dockerfile = parse_dockerfile("ARG A=x\nARG B=${A}y\nFROM $B:${C:-z}\n", "D")
    assert make_plan(dockerfile, "", {"A": "w"}, {}).stages[0].image == "wy:z"


def test_a_mount_needs_its_stage() -> None:
    text = "FROM a AS one\nFROM b\nRUN --mount=type=bind,from=one,target=/x y\n"
    assert [stage.stage.number for stage in make_plan(parse_dockerfile(text, "D"), "", {}, {}).stages] == [0, 1]


@pytest.mark.parametrize(
    ("text", "target", "message"),
    [
        ("FROM a AS one\n", "two", "no stage 'two' in the Dockerfile: one"),
        ("FROM $B\n", "", "D:1:1: the base '$B' is empty"),
        ("FROM ${B:?say it}\n", "", "D:1:1: B: say it"),
        ("FROM ${B\n", "", "D:1:1: '${B' is no substitution"),
    ],
)
def test_plans_that_cannot_be(text: str, target: str, message: str) -> None:
    with pytest.raises(InvalidError) as caught:
        make_plan(parse_dockerfile(text, "D"), target, {}, {})
    assert str(caught.value).startswith(message)
