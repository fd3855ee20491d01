"""What `--format` prints, as Go's templates do."""

from __future__ import annotations

import pytest

from overlayfs.cli.template import filled
from overlayfs.image.oci.errors import InvalidError

DOCUMENT = {
    "Id": "abc",
    "State": {"Running": True, "ExitCode": None, "Pid": 7},
    "Tags": ["a:1", "b:2"],
    "Labels": {"z": "last", "a.b": "dotted"},
}


@pytest.mark.parametrize(
    ("template", "printed"),
    [
        ("{{.Id}}", "abc"),
        (r"{{ .State.Pid }}\t{{.State.Running}}\n", "7\ttrue\n"),
        ("{{.State.ExitCode}}", "<nil>"),
        ("{{.Tags}} {{.Labels}}", "[a:1 b:2] map[a.b:dotted z:last]"),
        ("{{json .Tags}}", '["a:1","b:2"]'),
        ("{{index .Tags 1}}", "b:2"),
        ('{{index .Labels "a.b"}}-{{index .Labels "missing"}}', "dotted-"),
        ("{{json .State.ExitCode}}", "null"),
        ("no action }}", "no action }}"),
    ],
)
def test_members_are_printed_as_go_prints_them(template: str, printed: str) -> None:
    assert filled(template, DOCUMENT) == printed


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{.Name}}", "no member .Name: there are .Id, .State, .Tags, .Labels"),
        ("{{.Id.More}}", "abc has no member .More"),
        ("{{index .Tags 2}}", "no item 2"),
        ("{{index .Tags}}", "index"),
        ("{{.Tags 1}}", "index"),
        ("{{range .Tags}}{{.}}{{end}}", "json and index are known"),
    ],
)
def test_other_templates_are_refused(template: str, why: str) -> None:
    with pytest.raises(InvalidError, match=why):
        filled(template, DOCUMENT)


def test_control_characters_of_values_are_escaped() -> None:
    hostile = {"Labels": {"\x1b[2J": "a\x1b[31m\nb"}, "Name": "\x9b1m"}
    assert filled("{{.Labels}} {{.Name}}", hostile) == r"map[\x1b[2J:a\x1b[31m\nb] \x9b1m"
    with pytest.raises(InvalidError, match=r"there are \.\\x1b\[2J$"):
        filled("{{.Labels.missing}}", hostile)


def test_escapes_of_the_template_are_not_those_of_values() -> None:
    assert filled(r"{{.Id}}\n", {"Id": r"a\tb"}) == "a\\tb\n"
