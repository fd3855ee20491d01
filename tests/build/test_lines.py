"""Dockerfiles as text: directives, comments, continued lines, heredocs, places."""

from __future__ import annotations

import pytest

from overlayfs.build.dockerfile.lines import DockerfileError, read_lines


def read(text: str) -> list[tuple[str, str]]:
    return [(line.name, line.text) for line in read_lines(text, "Dockerfile").lines]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("FROM a\nRUN b\n", [("FROM", "a"), ("RUN", "b")]),
        ("\ufeffFROM a", [("FROM", "a")]),
        ("from a\r\nRun b\r\n", [("FROM", "a"), ("RUN", "b")]),
        ("# x\n\n  # y\n  FROM a\n", [("FROM", "a")]),
        ("RUN a \\\n  b\n", [("RUN", "a   b")]),
        ("RUN a \\   \nb\n", [("RUN", "a b")]),
        ("RUN a \\\n# c\n\n  # d\nb\n", [("RUN", "a b")]),
        ("RUN a\\\nb\n", [("RUN", "ab")]),
        ("RUN \\\n a\n", [("RUN", " a")]),
        ("RUN a \\", [("RUN", "a")]),
        ("# escape=`\nRUN a ` \nb \\\n", [("RUN", "a b \\")]),
        ("#escape = ` \nRUN a `\nb", [("RUN", "a b")]),
        ("# syntax=docker/dockerfile:1\n# escape=`\nRUN a `\nb", [("RUN", "a b")]),
        ("# a comment\n# escape=`\nRUN a `\nRUN b", [("RUN", "a `"), ("RUN", "b")]),
        ("FROM a\n# escape=`\nRUN a \\\nb", [("FROM", "a"), ("RUN", "a b")]),
        ("# other=1\n# escape=`\nRUN a `\nRUN b", [("RUN", "a `"), ("RUN", "b")]),
        ("# check=skip=JSONArgsRecommended,StageNameCasing; error=true\n# escape=`\nRUN a `\nb", [("RUN", "a b")]),
        ("# Check = skip=all\nFROM a", [("FROM", "a")]),
        ("CMD", [("CMD", "")]),
    ],
)
def test_instructions(text: str, lines: list[tuple[str, str]]) -> None:
    assert read(text) == lines


@pytest.mark.parametrize(
    ("text", "heredocs"),
    [
        ("RUN <<EOF\na\n  b\nEOF\nRUN c", [("EOF", "a\n  b\n", True)]),
        ("RUN <<'EOF' cat\n$a\nEOF", [("EOF", "$a\n", False)]),
        ('RUN <<"E F"\nE', []),
        ("RUN <<-EOF\n\ta\n\t\tb\n\tEOF", [("EOF", "a\nb\n", True)]),
        ("COPY <<a <<b /x/\n1\na\n2\nb", [("a", "1\n", True), ("b", "2\n", True)]),
        ("RUN <<EOF\nFROM x\n# c\n\\\nEOF", [("EOF", "FROM x\n# c\n\\\n", True)]),
        ("RUN cat <<EOF > /x\na\nEOF", [("EOF", "a\n", True)]),
        ("RUN cat 3<<EOF\na\nEOF", [("EOF", "a\n", True)]),
        ("RUN echo 'a <<EOF'", []),
        ("RUN cat <<< word", []),
        ("RUN echo $((1<<2))", []),
        ("ENV A=<<EOF", []),
    ],
)
def test_heredocs(text: str, heredocs: list[tuple[str, str, bool]]) -> None:
    line = read_lines(text, "Dockerfile").lines[0]
    assert [(found.name, found.content, found.is_expanded) for found in line.heredocs] == heredocs


def test_places_are_those_of_the_file() -> None:
    line = read_lines("FROM a\n\n  RUN --x \\\n  # c\n    --y z\n", "f").lines[1]
    assert (line.place(0).line, line.place(0).column) == (3, 7)
    place = line.place(line.text.index("--y"))
    assert (place.line, place.column) == (5, 5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("FROM a\n  &&\n", "Dockerfile:2:3: '&&' is no instruction"),
        ("# escape=x\nFROM a", "Dockerfile:1:1: the escape character is \\ or `, not 'x'"),
        ("# check=all\nFROM a", "Dockerfile:1:1: check is skip=NAME,… or error=true, with ; between, not 'all'"),
        ("# check=error=yes\nFROM a", "Dockerfile:1:1: check is skip=NAME,…"),
        ("# escape=`\n# escape=`\n", "Dockerfile:2:1: the directive escape is given twice"),
        ("FROM a\nRUN cat <<EOF\nb\n", "Dockerfile:2:9: the heredoc EOF has no end: a line that is 'EOF'"),
    ],
)
def test_faults_have_a_place(text: str, message: str) -> None:
    with pytest.raises(DockerfileError) as caught:
        read(text)
    assert str(caught.value).startswith(message)


def test_ten_thousand_lines_and_a_very_long_one() -> None:
    assert len(read("FROM a\n" + "RUN b\n" * 10_000)) == 10_001
    ((_, text),) = read("RUN a" + " \\\n  && b" * 20_000)
    assert text.count("&& b") == 20_000
