"""Names of `typing` for the modules that a served mount imports: importing `typing` takes a tenth of a start.

The type checker sees the originals. When the program runs, what is only written in annotations is None, as those are
never evaluated, and NamedTuple makes the same classes as the original.
"""

__all__ = ["TYPE_CHECKING", "Any", "Final", "NamedTuple", "NoReturn", "Self", "TypeVar"]

TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any, Final, NamedTuple, NoReturn, Self, TypeVar
else:
    from collections import namedtuple

    Any = Final = NoReturn = Self = None

    def TypeVar(name, **bounds):  # noqa: ARG001, N802 - as the original
        return None

    class _NamedTupleType(type):
        def __new__(cls, name, bases, body):
            if not bases:  # NamedTuple itself
                return super().__new__(cls, name, bases, body)
            fields = body.pop("__annotations__")
            defaults = [body.pop(field) for field in fields if field in body]
            made = namedtuple(name, fields, defaults=defaults, module=body["__module__"])
            made.__annotations__ = fields
            for key, value in body.items():
                setattr(made, key, value)
            return made

    class NamedTuple(metaclass=_NamedTupleType):
        pass
