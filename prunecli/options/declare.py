"""One frozen data class per command declares its options; the command line, the library, recipes and defaults of
`pyproject.toml` are read off it.

    @dataclass(frozen=True, kw_only=True)
    class Example(Options):
        '''Help of the command.'''
        ratio: Annotated[float | None, Option("fraction to remove", SELECT, read=parse_fraction)] = None

A field without an `Option` is for callers of the library only.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields, replace
from math import isfinite
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Self, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from prunecli.errors import InvalidValue, PruneError, check_keyword
from prunecli.types import Json

OUTPUT, REPORT, SELECT, DATA, RUN = "Output", "Report", "Selection", "Data", "Execution"
"""Sections of `--help` that several commands have."""
Group = TypeVar("Group", bound="Options")


@dataclass(frozen=True)
class Option:
    """How a field appears on the command line.

    `name`: without dashes, if it is not the field's own; `short`: as `-o`. `read`: makes the value of a text, and
    raises PruneError; numbers, and several, joined by `separator`, are read as the text of them. `least`, `most`: bounds
    of a number, both allowed. `off`: a switch that makes the field False. `metavar`: by default the choices of a Literal; `D`, `PATH`, `DIR`, `FILE` and `ORIGINAL` say that a text names
    data, a path or a model, which is relative to the file it is written in. `check`: raises PruneError for a value that
    cannot be used.
    """

    help: str
    section: str = "Options"
    metavar: str = ""
    name: str = ""
    short: str = ""
    read: Callable[[str], Any] | None = None
    separator: str = ","
    least: float | None = None
    most: float | None = None
    off: bool = False
    check: Callable[[Any], None] | None = None
    show_default: bool = True


@dataclass(frozen=True)
class Declared:
    """A field with its option. `kind`: the type of one value; `many`: whether it is a tuple of them; `choices`: of a
    Literal; `results`: types of its own that a reader returns."""

    field: str
    option: Option
    kind: type
    many: bool
    optional: bool
    default: Any
    choices: tuple[str, ...] = ()
    results: tuple[type, ...] = ()

    @property
    def name(self) -> str:
        """Return the name on the command line, without dashes."""
        return self.option.name or self.field.replace("_", "-")

    @property
    def metavar(self) -> str:
        return self.option.metavar or "|".join(self.choices)

    def value(self, given: Any) -> Any:
        """Return the field's value for what a caller gives: texts are parsed, choices and bounds checked.

        Raises:
            PruneError: the value cannot be used.
        """
        if given is None:
            if self.optional or self.many:
                return () if self.many else None
            raise InvalidValue(self.name, "there is none", "give one, or leave it out")
        if self.many:
            if isinstance(given, str | Path):
                given = (given,)
            if not isinstance(given, Iterable):
                raise self._wrong(given)
            return tuple(self.single(item) for item in given)
        return self.single(given)

    def single(self, given: Any) -> Any:
        """Return one value of the field, of several, for what a caller gives.

        Raises:
            InvalidValue: it cannot be used.
        """
        try:
            value = self._typed(given) if self.option.read is None else self._read(given)
            if self.choices and value not in self.choices:
                raise InvalidValue(self.name, f"{value!r} is unknown", f"choose from {', '.join(self.choices)}")
            self._check_bounds(value)
            if self.option.check is not None:
                self.option.check(value)
        except InvalidValue:
            raise
        except PruneError as error:
            raise InvalidValue(self.name, error.message.removeprefix(f"--{self.name} "), error.hint) from None
        return value

    def _read(self, given: Any) -> Any:
        """The value that the option's reader makes of a text, a number, or several; other values are its results."""
        assert self.option.read is not None
        parts = given if isinstance(given, list | tuple) else (given,)
        if not all(isinstance(part, str | Real) and not isinstance(part, bool) for part in parts):
            if not isinstance(given, self.results):
                raise self._wrong(given)
            return given
        texts = [part if isinstance(part, str) else _digits(part) for part in parts]
        return self.option.read(self.option.separator.join(texts))

    def _typed(self, given: Any) -> Any:
        """The value as the field's type; numbers and paths may be texts."""
        fits = {bool: bool, int: Real | str, float: Real | str, Path: str | Path, str: str | Path}
        if self.kind is object:
            return given
        if not isinstance(given, fits[self.kind]) or (self.kind is not bool and isinstance(given, bool)):
            raise self._wrong(given)
        try:
            value = self.kind(given)
        except (ValueError, OverflowError):
            raise self._wrong(given) from None
        if (self.kind is int and isinstance(given, Real) and value != given) or (
            self.kind is float and not isfinite(value)
        ):
            raise self._wrong(given)
        return value

    def _wrong(self, given: Any) -> PruneError:
        wanted = {bool: "True or False", int: "a whole number", float: "a number", Path: "a path", str: "a text"}
        kind, many = wanted.get(self.kind, "a value"), "a list of them, each " if self.many else ""
        return InvalidValue(
            self.name, f"{given!r} is not {kind}", f"it takes {many}{kind}{self.bounds and ', '}{self.bounds}"
        )

    @property
    def bounds(self) -> str:
        """The bounds of a number, in words."""
        least, most = self.option.least, self.option.most
        if least is None:
            return "" if most is None else f"at most {most:g}"
        return f"at least {least:g}" if most is None else f"from {least:g} to {most:g}"

    def _check_bounds(self, given: Any) -> None:
        least, most = self.option.least, self.option.most
        if isinstance(given, int | float) and not (
            (least is None or given >= least) and (most is None or given <= most)
        ):
            raise InvalidValue(self.name, f"{given:g} is out of its range", f"it is {self.bounds}")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a command. Values are checked on construction; `check` judges them together. `printed`: fields that say
    what the command line prints, which functions do not.

    Raises:
        PruneError: a value cannot be used, or values do not go together.
    """

    printed = frozenset[str]()

    def __post_init__(self) -> None:
        for declared in declared_of(type(self)):
            object.__setattr__(self, declared.field, declared.value(getattr(self, declared.field)))
        self.check()

    def check(self) -> None:
        """Raise PruneError where values do not go together."""

    @classmethod
    def idle(cls, given: Collection[str]) -> frozenset[str]:
        """Return the fields that mean nothing where the user gives only these: what a file sets for every command is
        not for a command line that has no use for it."""
        return frozenset()

    @classmethod
    def of(cls, options: Self | None = None, /, **changes: Any) -> Self:
        """Return `options`, or the defaults, with `changes` applied.

        Raises:
            PruneError: a name that the command does not have, or as the class.
        """
        known, owner = [one.name for one in fields(cls)], cls.__name__.removesuffix("Options").lower()
        for name in changes:
            named = (one for one in declared_of(cls) if one.name.replace("-", "_") == name)
            if name not in known and (one := next(named, None)) is not None:
                called = f"{one.field}=False" if one.option.off else one.field
                raise PruneError(f"{owner} has no option {name!r}", f"--{one.name} is {called} in Python")
            check_keyword(name, known, owner)
            if name in cls.printed:
                raise PruneError(f"{owner} as a function prints and writes no report, so {name} means nothing",
                                 "the result has all of it: `result.to_json()`")  # fmt: skip
        if options is not None and not isinstance(options, cls):
            raise PruneError(f"{owner} takes options of the class {cls.__name__}, not {type(options).__name__}",
                             "give its options by their names, as keywords")  # fmt: skip
        return cls(**changes) if options is None else replace(options, **changes)

    def part(self, group: type[Group], **changes: Any) -> Group:
        """Return the fields of a group as an object of that group alone."""
        own = {one.name for one in fields(self)}
        return group(**{one.name: getattr(self, one.name) for one in fields(group) if one.name in own} | changes)

    def recorded(self, names: Iterable[str]) -> Json:
        """Return the options of these names as JSON, for the recipe that reports, plans and saved models keep."""
        values = {name: getattr(self, name) for name in names}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def given(cls, values: Mapping[str, Any], *unless: str) -> list[str]:
        """Return the command-line names of the group's options that differ from their defaults."""
        return [
            f"--{declared.name}"
            for declared in declared_of(cls)
            if declared.field not in unless and values[declared.field] != declared.value(declared.default)
        ]

    @classmethod
    def fields_in(cls, section: str) -> frozenset[str]:
        """Return the fields whose options are in a section of `--help`."""
        return frozenset(one.field for one in declared_of(cls) if one.option.section == section)


def _digits(number: Real) -> str:
    """The number as a text that reads as the same one."""
    return str(int(number)) if isinstance(number, Integral) else repr(float(number))


_DECLARED: dict[type[Options], tuple[Declared, ...]] = {}


def declared_of(options: type[Options]) -> tuple[Declared, ...]:
    """Return the options that a class declares: its own first, then those of its groups."""
    if options not in _DECLARED:
        _DECLARED[options] = tuple(_read(options))
    return _DECLARED[options]


def _read(options: type[Options]) -> list[Declared]:
    hints = get_type_hints(options, include_extras=True)
    order = dict.fromkeys(name for kind in options.__mro__ for name in vars(kind).get("__annotations__", ()))
    by_name = {one.name: one for one in fields(options)}
    found = []
    for one in (by_name[name] for name in order if name in by_name):
        hint = hints[one.name]
        option = next((extra for extra in get_args(hint)[1:] if isinstance(extra, Option)), None)
        if get_origin(hint) is Annotated and option is not None:
            default = one.default_factory() if one.default_factory is not MISSING else one.default
            found.append(_declared(one.name, option, get_args(hint)[0], default=default))
    return found


def _declared(field: str, option: Option, hint: Any, default: Any) -> Declared:
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    kinds = [part for part in parts if part is not NoneType]
    kind, optional = kinds[0], len(kinds) < len(parts) or default is None
    many = option.read is None and get_origin(kind) is tuple
    if many:
        kind = get_args(kind)[0]
    choices = cast("tuple[str, ...]", get_args(kind)) if get_origin(kind) is Literal else ()
    plain = object if kind is Any else kind if kind in (bool, int, float, Path) else str
    read = option.read is not None and not many
    results = tuple(part for part in kinds if isinstance(part, type) and part not in (int, float, str)) if read else ()
    return Declared(
        field, option, plain, many=many, optional=optional, default=default, choices=choices, results=results
    )
