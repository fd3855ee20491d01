"""Dockerfiles that cover each instruction and flag, for the same build by buildah and by us."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final


@dataclass(frozen=True, slots=True)
class Case:
    """One build of the shared context: the Dockerfile, and words of the command line that both programs take."""

    text: str
    words: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)


def case(text: str, *words: str, **files: str) -> Case:
    return Case(text, words, files)


ON: Final = "FROM localhost/small\n"

CASES: Final[Mapping[str, Case]] = {
    "from": case(ON),
    "from-scratch": case("FROM scratch\nCOPY a /a\n"),
    "from-argument": case("ARG BASE=small\nARG WHERE=localhost/\nFROM ${WHERE}$BASE\nRUN echo x > /x\n"),
    "from-argument-given": case("ARG BASE=none\nFROM localhost/$BASE\nRUN echo x > /x\n", "--build-arg", "BASE=small"),
    "from-stage": case(f"{ON[:-1]} AS one\nRUN echo 1 > /1\nENV A=1\nFROM one\nRUN echo $A > /2\n"),
    "from-stage-case": case(f"{ON[:-1]} as One\nRUN echo 1 > /1\nFROM one\n"),
    "unneeded-stage": case(f"{ON[:-1]} AS bad\nRUN false\nFROM localhost/small\nRUN echo 1 > /1\n"),
    "target": case(f"{ON[:-1]} AS one\nRUN echo 1 > /1\nFROM one AS two\nRUN false\n", "--target", "one"),
    "run-shell": case(f"{ON}RUN echo a   b > /x && cat /x\n"),
    "run-exec": case(f'{ON}RUN ["sh", "-c", "echo $0 > /x", "word"]\n'),
    "run-continued": case(f"{ON}RUN echo a \\\n  # a comment\n\n  b \\\n  > /x\n"),
    "run-quotes": case(f"""{ON}RUN echo "a  '$HOME'" > /x; echo '"$HOME"' > /y\n"""),
    "run-deletes": case(f"{ON}RUN mkdir -p /d/e && touch /d/e/f\nRUN rm -r /d/e\nRUN rm /etc/group\n"),
    "run-replaces-directory": case(f"{ON}RUN mkdir /d && touch /d/a\nRUN rm -r /d && mkdir /d && touch /d/b\n"),
    "run-links": case(f"{ON}RUN echo a > /a && ln /a /b && ln -s a /c\n"),
    "run-hard-link-below": case(f"{ON}RUN echo a > /a && ln /a /b\nRUN echo b >> /a\n"),
    "run-owner": case(f"{ON}RUN touch /x && chown 33:44 /x\n"),
    "run-as-user": case(f"{ON}USER bob\nRUN id -u > /tmp/x; id -g >> /tmp/x\n"),
    "run-as-number": case(f"{ON}USER 33:50\nRUN id -u > /tmp/x; id -g >> /tmp/x\n"),
    "run-network": case(f"{ON}RUN --network=none echo a > /x\n"),
    "run-tmpfs": case(f"{ON}RUN --mount=type=tmpfs,target=/m touch /m/x && touch /y\n"),
    "run-bind": case(f"{ON}RUN --mount=type=bind,source=d,target=/m cat /m/b > /x\n"),
    "run-bind-from": case(
        f"{ON[:-1]} AS one\nRUN echo 1 > /1\n{ON}RUN --mount=type=bind,from=one,target=/m cat /m/1 > /2\n"
    ),
    "run-cache": case(f"{ON}RUN --mount=type=cache,target=/m touch /m/x && ls /m > /y\n"),
    "run-secret": case(
        f"{ON}RUN --mount=type=secret,id=s cat /run/secrets/s > /dev/null && echo ok > /x\n", "--secret", "id=s,src=a"
    ),
    "copy-file": case(f"{ON}COPY a /x\n"),
    "copy-into-directory": case(f"{ON}COPY a /x/\n"),
    "copy-into-existing": case(f"{ON}COPY a /tmp\n"),
    "copy-directory": case(f"{ON}COPY d /x\n"),
    "copy-directory-slash": case(f"{ON}COPY d/ /x/\n"),
    "copy-several": case(f"{ON}COPY a d/b /x/\n"),
    "copy-several-directories": case(f"{ON}COPY d e /x/\n"),
    "copy-all": case(f"{ON}COPY . /x\n"),
    "copy-wildcard": case(f"{ON}COPY *.txt /x/\n"),
    "copy-question-mark": case(f"{ON}COPY ?.txt /x/\n"),
    "copy-set": case(f"{ON}COPY [pq].txt /x/\n"),
    "copy-json": case(f'{ON}COPY ["with space", "/x y/"]\n'),
    "copy-relative": case(f"{ON}WORKDIR /w\nCOPY a b/\nCOPY a .\n"),
    "copy-chown": case(f"{ON}COPY --chown=bob:others d /x\n"),
    "copy-chown-numbers": case(f"{ON}COPY --chown=7:8 a /x/y\n"),
    "copy-chown-number": case(f"{ON}COPY --chown=33 a /x\n"),
    "copy-chown-user": case(f"{ON}COPY --chown=bob a /x\n"),
    "copy-chmod": case(f"{ON}COPY --chmod=640 a /x\n"),
    "copy-from": case(
        f"{ON[:-1]} AS one\nRUN mkdir /d && echo 1 > /d/1 && chown 7:8 /d/1\n{ON}COPY --from=one /d /e\n"
    ),
    "copy-from-number": case(f"{ON}RUN echo 1 > /1\n{ON}COPY --from=0 /1 /2\n"),
    "copy-from-image": case("FROM scratch\nCOPY --from=localhost/small /etc/passwd /x\n"),
    "copy-symlink": case(f"{ON}COPY link /x\n"),
    "copy-symlink-in-directory": case(f"{ON}COPY links /x\n"),
    "copy-symlink-to-directory": case(f"{ON}COPY tod /x\n"),
    "copy-mode": case(f"{ON}COPY run.sh /x\n"),
    "copy-over-symlink": case(f"{ON}RUN mkdir /real && ln -s real /alias\nCOPY a /alias/\n"),
    "copy-over-file": case(f"{ON}COPY a /x\nCOPY d/b /x\n"),
    "copy-merges": case(f"{ON}COPY d /x\nCOPY e /x\n"),
    "copy-variable": case(f"{ON}ARG S=a\nENV T=/x\nCOPY $S ${{T}}/y\n"),
    "add-file": case(f"{ON}ADD a /x\n"),
    "add-tar": case(f"{ON}ADD t.tar /x\n"),
    "add-tar-gz": case(f"{ON}ADD t.tar.gz /x/\n"),
    "add-tar-bz2": case(f"{ON}ADD t.tar.bz2 /x/\n"),
    "add-tar-xz": case(f"{ON}ADD t.tar.xz /x/\n"),
    "add-chown": case(f"{ON}ADD --chown=7:8 a /x\n"),
    "env": case(f"{ON}ENV A=1 B=\"2 3\" C='4 5' D=6\\ 7\nENV E $A $B\n"),
    "env-expansion": case(f"{ON}ENV A=1\nENV B=${{A}}x C=${{N:-d}} D=${{A:+s}} E=${{N:+s}} F=\\$A G='$A'\n"),
    "env-same-line": case(f"{ON}ENV A=1\nENV A=2 B=$A\n"),
    "env-in-run": case(f"{ON}ENV A=1\nRUN A=2; echo $A > /x\nRUN echo $A > /y\n"),
    "arg": case(f"{ON}ARG A=1\nARG B\nRUN echo $A-$B- > /x\n", "--build-arg", "B=2"),
    "arg-scope": case(f"ARG A=1\n{ON}RUN echo -$A- > /x\nARG A\nRUN echo -$A- > /y\n"),
    "arg-and-env": case(f"{ON}ARG A=1\nENV A=2\nRUN echo $A > /x\n", "--build-arg", "A=3"),
    "arg-into-env": case(f"{ON}ARG A=1\nENV B=$A\n", "--build-arg", "A=3"),
    "arg-proxy": case(f"{ON}RUN echo -$http_proxy- > /x\n", "--build-arg", "http_proxy=p"),
    "arg-platform": case(f"{ON}ARG TARGETOS\nARG TARGETARCH\nRUN echo $TARGETOS $TARGETARCH > /x\n"),
    "workdir": case(f"{ON}WORKDIR /a/b\nWORKDIR c\nRUN pwd > x\n"),
    "workdir-variable": case(f"{ON}ENV D=/v\nWORKDIR $D/w\nRUN pwd > x\n"),
    "workdir-existing": case(f"{ON}WORKDIR /tmp\n"),
    "user": case(f"{ON}USER bob:others\n"),
    "label": case(f'{ON}LABEL a=1 "b c"=\'2 3\' d.e="4\\\n5"\nLABEL a=6\n'),
    "label-option": case(f"{ON}LABEL a=1\n", "--label", "b=2"),
    "expose": case(f"{ON}ENV P=90\nEXPOSE 80 53/udp $P\n"),
    "volume": case(f"{ON}VOLUME /v /w\n"),
    "volume-json": case(f'{ON}VOLUME ["/v"]\n'),
    "cmd-shell": case(f"{ON}CMD echo $HOME\n"),
    "cmd-exec": case(f'{ON}CMD ["echo", "a b"]\n'),
    "entrypoint": case(f'{ON}CMD ["a"]\nENTRYPOINT ["sh", "-c"]\n'),
    "entrypoint-drops-cmd": case(f'{ON}ENTRYPOINT ["sh", "-c"]\n'),
    "entrypoint-shell": case(f"{ON}ENTRYPOINT exec top\n"),
    "shell": case(f'{ON}SHELL ["/bin/sh", "-ec"]\nRUN echo a > /x\nCMD echo b\n'),
    "healthcheck": case(f"{ON}HEALTHCHECK --interval=5m --timeout=3s --retries=2 --start-period=1s CMD cat /x\n"),
    "healthcheck-exec": case(f'{ON}HEALTHCHECK CMD ["cat", "/x"]\n'),
    "healthcheck-none": case(f"{ON}HEALTHCHECK NONE\n"),
    "stopsignal": case(f"{ON}STOPSIGNAL SIGUSR1\n"),
    "onbuild": case(f"{ON}ONBUILD RUN echo a > /x\nONBUILD COPY a /y\n"),
    "onbuild-runs": case(f"{ON[:-1]} AS one\nONBUILD RUN echo a > /x\nFROM one\n"),
    "workdir-user": case(f"{ON}USER bob\nWORKDIR /w/x\nWORKDIR /tmp/y\nRUN touch z\n"),
    "workdir-symlink": case(f"{ON}RUN mkdir /real && ln -s real /alias\nWORKDIR /alias/w\nRUN touch x\n"),
    "copy-to-root": case(f"{ON}COPY d /\nCOPY a .\n"),
    "copy-dot": case(f"{ON}WORKDIR /w\nCOPY . .\n"),
    "copy-into-dot": case(f"{ON}COPY a /v/.\n"),
    "copy-json-variable": case(f'{ON}ENV S=a T=/x\nCOPY ["$S", "${{T}}/"]\n'),
    "copy-from-wildcard": case(f"{ON[:-1]} AS one\nRUN touch /1 /2\n{ON}COPY --from=one --chown=bob /[12] /x/\n"),
    "copy-from-symlink": case(
        f"{ON[:-1]} AS one\nRUN mkdir /r; echo 1 > /r/f; ln -s r /l; ln -s /r/f /g\n{ON}COPY --from=one /l /x\n"
        "COPY --from=one /g /y\nCOPY --from=one /r /z\n"
    ),
    "copy-over-other-owner": case(f"{ON}RUN mkdir /x && touch /x/b && chown -R 5:6 /x\nCOPY d /x\n"),
    "add-directory": case(f"{ON}ADD d /x\nADD link /y\n"),
    "add-wildcard": case(f"{ON}ADD t.tar* /x/\n"),
    "run-in-volume": case(f"{ON}RUN mkdir /v\nVOLUME /v\nRUN touch /v/x /y\n"),
    "run-umask": case(f"{ON}RUN umask > /u; touch /x; mkdir /y\n"),
    "run-modes": case(f"{ON}RUN touch /x; (umask 777; touch /y); mkdir -m 6755 /w; mkdir -m 3777 /z\n"),
    "run-file-to-directory": case(f"{ON}RUN mkdir /d; touch /d/a /f\nRUN rm -r /d; touch /d; rm /f; mkdir /f\n"),
    "run-fifo": case(f"{ON}RUN mkfifo /x; ln -s /none /y\n"),
    "run-streams": case(f"{ON}RUN echo 1 > /dev/stdout; echo 2 > /dev/stderr; cat > /x; echo $? > /y\n"),
    "run-home": case(f"{ON}RUN echo $HOME > /x\nUSER bob\nRUN echo $HOME > /tmp/y\n"),
    "env-tab": case(f"{ON}ENV A\tb  c\nENV\tB=1\n"),
    "label-expansion": case(f"{ON}ARG V=1\nLABEL v=$V w='$V' x=\"${{V}}2\"\n"),
    "user-variable": case(f"{ON}ARG U=bob\nUSER ${{U}}:${{G:-others}}\n"),
    "stopsignal-variable": case(f"{ON}ENV S=SIGINT\nSTOPSIGNAL $S\n"),
    "expose-protocol": case(f"{ON}EXPOSE 80/TCP 8000-8002/udp\n"),
    "onbuild-chain": case(f"{ON[:-1]} AS one\nONBUILD ENV A=1\nFROM one AS two\nRUN echo $A > /x\nFROM two\n"),
    "cmd-inherited": case(f'{ON[:-1]} AS one\nCMD ["a"]\nFROM one\nENTRYPOINT ["b"]\n'),
    "stages-parallel": case(
        f"{ON[:-1]} AS a\nRUN echo a > /x\n{ON[:-1]} AS b\nRUN echo b > /x\n{ON}COPY --from=a /x /a\n"
        "COPY --from=b /x /b\n"
    ),
    "maintainer": case(f"{ON}MAINTAINER A B <a@b>\n"),
    "lower-case": case("from localhost/small\nrun echo a > /x\nenv A=1\n"),
    "escape": case(f"# escape=`\n{ON}RUN echo a `\n  b > /x\nENV A=`$A B=c:\\d\n"),
    "comments": case(f"# a comment\n\n  # another\n{ON}  # one more\nRUN echo '# no comment' > /x\n"),
    "crlf": case("FROM localhost/small\r\nRUN echo a > /x\r\nENV A=1\r\n"),
    "ignore": Case(f"{ON}COPY . /x\n", (), {".dockerignore": "# c\n*.txt\n!q.txt\nd\n**/deep\n"}),
    "ignore-containerignore": Case(f"{ON}COPY . /x\n", (), {".containerignore": "a\n", ".dockerignore": "*\n"}),
    "ignore-dockerfile": Case(f"{ON}COPY . /x\n", (), {".dockerignore": "Dockerfile\n.dockerignore\n"}),
}
