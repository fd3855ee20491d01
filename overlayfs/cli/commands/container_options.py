"""Which options do `run` and `create` share? Those that a container keeps, as docker names them.

`settings_of` declares each of them once; `taking_settings` gives them to a command. Annotations are not postponed here
(PEP 563): typer needs their values, and evaluating the texts of forty options takes 2 ms.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer

if TYPE_CHECKING:
    from overlayfs.container.spec.settings import Settings
else:  # typer evaluates the annotations; msgspec is for the commands that need it
    Settings = Any

Texts = list[str] | None


def settings_of(
    environment: Annotated[
        Texts, typer.Option("--env", "-e", metavar="NAME[=VALUE]", help="Set a variable, or pass yours on.")
    ] = None,
    environment_files: Annotated[
        list[Path] | None,
        typer.Option("--env-file", metavar="FILE", help="Variables, a line each.", exists=True, dir_okay=False),
    ] = None,
    volumes: Annotated[
        Texts,
        typer.Option("--volume", "-v", metavar="[SOURCE:]TARGET[:ro]", help="Mount a path or a volume in it."),
    ] = None,
    mounts: Annotated[
        Texts,
        typer.Option("--mount", metavar="type=…,…", help="The same in words: bind, volume or tmpfs."),
    ] = None,
    tmpfs: Annotated[Texts, typer.Option("--tmpfs", metavar="TARGET[:OPTIONS]", help="Mount a tmpfs in it.")] = None,
    volumes_from: Annotated[
        Texts, typer.Option("--volumes-from", metavar="NAME[:ro]", help="Mount what is mounted in a container.")
    ] = None,
    working_directory: Annotated[
        str, typer.Option("--workdir", "-w", metavar="DIR", help="The working directory.")
    ] = "",
    user: Annotated[
        str,
        typer.Option(
            "--user", "-u", metavar="USER[:GROUP]", help="The user to run as: a name of the image, or a number."
        ),
    ] = "",
    groups: Annotated[Texts, typer.Option("--group-add", metavar="GROUP", help="One more group of the user.")] = None,
    hostname: Annotated[
        str, typer.Option("--hostname", "-h", metavar="NAME", help="The host name; the container's name by default.")
    ] = "",
    entrypoint: Annotated[
        str | None, typer.Option("--entrypoint", metavar="PROGRAM", help="Replaces the image's; empty for none.")
    ] = None,
    labels: Annotated[Texts, typer.Option("--label", "-l", metavar="NAME=VALUE", help="A label.")] = None,
    has_terminal: Annotated[bool, typer.Option("--tty", "-t", help="Give the program a terminal.")] = False,
    keeps_stdin: Annotated[
        bool, typer.Option("--interactive", "-i", help="Keep its input open when detached; else it has ours.")
    ] = False,
    is_read_only: Annotated[bool, typer.Option("--read-only", help="Only volumes are writable.")] = False,
    network: Annotated[
        str,
        typer.Option(
            "--network",
            "--net",
            metavar="host|none|private|container:NAME",
            help="The network; private with -p, else host.",
        ),
    ] = "",
    ports: Annotated[
        Texts, typer.Option("--publish", "-p", metavar="[IP:]HOST:CONTAINER[/udp]", help="Publish a port, or a range.")
    ] = None,
    publishes_all: Annotated[
        bool, typer.Option("--publish-all", "-P", help="Publish the ports that the image exposes.")
    ] = False,
    hosts: Annotated[Texts, typer.Option("--add-host", metavar="NAME:IP", help="A line of /etc/hosts.")] = None,
    dns: Annotated[Texts, typer.Option("--dns", metavar="IP", help="A name server.")] = None,
    added: Annotated[Texts, typer.Option("--cap-add", metavar="CAP", help="Add a capability, or ALL.")] = None,
    dropped: Annotated[Texts, typer.Option("--cap-drop", metavar="CAP", help="Drop a capability, or ALL.")] = None,
    is_privileged: Annotated[
        bool, typer.Option("--privileged", help="All capabilities and devices; nothing is filtered.")
    ] = False,
    security: Annotated[
        Texts,
        typer.Option("--security-opt", metavar="OPTION", help="seccomp=FILE|unconfined, no-new-privileges."),
    ] = None,
    has_init: Annotated[bool, typer.Option("--init", help="An init process reaps the program's children.")] = False,
    ulimits: Annotated[Texts, typer.Option("--ulimit", metavar="NAME=SOFT[:HARD]", help="A resource limit.")] = None,
    memory: Annotated[str, typer.Option("--memory", "-m", metavar="SIZE", help="Most memory, as in 512m.")] = "",
    cpus: Annotated[str, typer.Option("--cpus", metavar="NUMBER", help="Most processors, as in 1.5.")] = "",
    pids_limit: Annotated[int, typer.Option("--pids-limit", metavar="COUNT", help="Most processes.")] = 0,
    stop_signal: Annotated[str, typer.Option("--stop-signal", metavar="SIGNAL", help="The signal of `stop`.")] = "",
    stop_timeout_s: Annotated[
        int | None, typer.Option("--stop-timeout", metavar="SECONDS", help="How long `stop` waits, 10 by default.")
    ] = None,
    health_command: Annotated[str, typer.Option("--health-cmd", metavar="COMMAND", help="Checks its health.")] = "",
    health_interval: Annotated[
        str, typer.Option("--health-interval", metavar="DURATION", help="From check to check, 30s by default.")
    ] = "",
    health_timeout: Annotated[
        str, typer.Option("--health-timeout", metavar="DURATION", help="How long a check may take, 30s by default.")
    ] = "",
    health_start: Annotated[
        str, typer.Option("--health-start-period", metavar="DURATION", help="In which failures do not count.")
    ] = "",
    health_retries: Annotated[
        int, typer.Option("--health-retries", metavar="COUNT", help="Failures until it is unhealthy, 3 by default.")
    ] = 0,
    has_no_health: Annotated[bool, typer.Option("--no-healthcheck", help="Ignore the image's health check.")] = False,
    restart: Annotated[str, typer.Option("--restart", metavar="no", help="Nothing restarts it: see systemd.")] = "no",
    runtime: Annotated[
        Literal["bwrap", "runc"] | None,
        typer.Option("--runtime", help="The runtime; by default the first that is installed and does it."),
    ] = None,
    log_driver: Annotated[
        Literal["k8s-file", "none"] | None,
        typer.Option("--log-driver", help="With none no log is kept, and in the foreground it has our output itself."),
    ] = None,
) -> Settings:
    """The options as plain data. Raises InvalidError."""
    from overlayfs.cli.container.variables import variables_of
    from overlayfs.container.health import given_health
    from overlayfs.container.spec.parts import label_of
    from overlayfs.container.spec.settings import Settings
    from overlayfs.image.oci.errors import InvalidError

    if restart != "no":
        raise InvalidError(
            f"--restart {restart} cannot be had: no daemon is there to start it again (use a systemd unit, or a loop)"
        )
    return Settings(
        entrypoint=entrypoint,
        environment=[*variables_of(environment_files or []), *(environment or [])],
        working_directory=working_directory,
        user=user,
        groups=groups or [],
        hostname=hostname,
        labels=dict(label_of(text) for text in labels or []),
        has_terminal=has_terminal,
        keeps_stdin=keeps_stdin,
        is_read_only=is_read_only,
        volumes=volumes or [],
        mounts=mounts or [],
        tmpfs=tmpfs or [],
        volumes_from=volumes_from or [],
        network=network,
        ports=ports or [],
        publishes_all=publishes_all,
        hosts=hosts or [],
        dns=dns or [],
        added_capabilities=added or [],
        dropped_capabilities=dropped or [],
        is_privileged=is_privileged,
        security=security or [],
        has_init=has_init,
        ulimits=ulimits or [],
        memory=memory,
        cpus=cpus,
        pids_limit=0 if pids_limit == -1 else pids_limit,
        stop_signal=stop_signal,
        stop_timeout_s=stop_timeout_s,
        health=given_health(
            health_command,
            {"interval": health_interval, "timeout": health_timeout, "start-period": health_start},
            health_retries,
            is_off=has_no_health,
        ),
        runtime=runtime or "",
        log_driver=log_driver or "",
    )


def taking_settings(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameter `settings` is replaced by the options of `settings_of`."""
    own, shared = (dict(inspect.signature(function).parameters) for function in (command, settings_of))
    del own["settings"]

    def call(**given: Any) -> None:
        chosen = {name: given.pop(name) for name in shared}
        command(settings=lambda: settings_of(**chosen), **given)

    call.__name__, call.__doc__ = command.__name__, command.__doc__
    hints = {**get_type_hints(settings_of, include_extras=True), **get_type_hints(command, include_extras=True)}
    parameters = [
        parameter.replace(annotation=hints[parameter.name], kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in (*own.values(), *shared.values())
    ]
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call
