"""The objects that a configuration names, such as an algorithm: one grammar for all of them.

A value is a registered name (`sdpo`), a dotted path to the user's own class (`my_module:MyAlgorithm`), or a mapping
with either of them as `name` and the object's fields (`{name: my_module:MyAlgorithm, beta: 3}`). The class is a
dataclass: it declares the types and the defaults of its fields.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any, Generic, TypeVar, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from sdpo.errors import UserError, cause, nearest
from sdpo.method.algorithms import GRADIENT_ALGORITHMS, POLICY_ALGORITHMS, Algorithm, RewardGradient
from sdpo.method.credit import CREDITS, Credit
from sdpo.method.reward_plans import REWARD_PLANS, RewardPlan
from sdpo.system.dotted_path import resolve

LARGEST = 2**31 - 1
"""The largest number that a configuration may hold, seeds apart."""

T = TypeVar("T")
Base = type[T] | tuple[type[T], ...]
"""A class that an object's class must be derived from, or several of which one will do."""

# Fields of these types are named objects themselves.
_NESTED: dict[type, tuple[Mapping[str, type], str]] = {
    Credit: (CREDITS, "credit rule"),
    RewardPlan: (REWARD_PLANS, "reward plan"),
    Algorithm: (POLICY_ALGORITHMS, "algorithm"),
    RewardGradient: (GRADIENT_ALGORITHMS, "algorithm"),
}


class NamedError(ValueError):
    """The mistakes in the value of a named object.

    Attributes:
        problems: the place of each mistake within the value (`credit.x`; empty for the value itself), and a message.
    """

    def __init__(self, problems: list[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{place}: {message}" if place else message for place, message in problems))
        self.problems = problems

    def within(self, place: str) -> NamedError:
        """The same mistakes, seen from the value that has this one at `place`."""
        return NamedError([(f"{place}.{inner}".rstrip("."), message) for inner, message in self.problems])


@dataclasses.dataclass(frozen=True)
class Named(Generic[T]):
    """A named object, and the plain data that describe it completely.

    Attributes:
        built: the object.
        name: the registered name or dotted path of its class.
        fields: all its fields, as a configuration file holds them.
    """

    built: T
    name: str
    fields: dict[str, Any]

    @property
    def plain(self) -> str | dict[str, Any]:
        """The name alone where the object has no fields, else a mapping of the name and all fields."""
        return {"name": self.name, **self.fields} if self.fields else self.name


def build_named(value: Any, registry: Mapping[str, type[T]], base: Base[T], what: str) -> T:
    """Build the object that a value of a configuration names.

    Args:
        value: a name, a dotted path, or a mapping of `name` and fields.
        registry: the classes that come with the package, by name.
        base: the class that the object's class must be derived from; of several, one.
        what: the kind of object, for messages: "algorithm".

    Raises:
        UserError: if the value does not name such a class, or its fields are not legal.
    """
    try:
        return validate_named(value, registry, base, what).built
    except NamedError as error:
        raise UserError(f"{what}: {error}") from error


def validate_named(value: Any, registry: Mapping[str, type[T]], base: Base[T], what: str) -> Named[T]:
    """Build the object that a value of a configuration names, and describe it as plain data.

    Args:
        value: a name, a dotted path, or a mapping of `name` and fields.
        registry: the classes that come with the package, by name.
        base: the class that the object's class must be derived from; of several, one.
        what: the kind of object, for messages: "algorithm".

    Raises:
        NamedError: if the value does not name such a class, or its fields are not legal.
    """
    name, settings = _split(value, what)
    found = _find_class(name, registry, base, what)
    fields = _fields(found)
    _check_keys(settings, found, fields, f"{what} {name}")
    given, plain, problems = dict[str, Any](), dict[str, Any](), list[tuple[str, str]]()
    for key, setting in settings.items():
        try:
            given[key], plain[key] = fields[key].read(setting)
        except NamedError as error:
            problems += error.within(key).problems
    if problems:
        raise NamedError(problems)
    built = _construct(found, given, name)
    return Named(built, name, {key: plain[key] if key in plain else _write(built, key) for key in fields})


def name_of(found: type, registry: Mapping[str, type]) -> str:
    """The registered name of a class, or the dotted path of the user's own."""
    names = (name for name, known in registry.items() if known is found)
    return next(names, f"{found.__module__}:{found.__qualname__}")


def _split(value: Any, what: str) -> tuple[str, dict[str, Any]]:
    """The name and the fields that a value gives."""
    if isinstance(value, str):
        return value, {}
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        form = f"a name, a dotted path such as {_example(what)}, or a mapping {{name: {_example(what)}, field: value}}"
        raise NamedError([("", f"expected {form}, got {value!r}")])
    return value["name"], {str(key): setting for key, setting in value.items() if key != "name"}


def _example(what: str) -> str:
    return f"my_module:My{what.title().replace(' ', '')}"


def _find_class(name: str, registry: Mapping[str, type], base: type | tuple[type, ...], what: str) -> type:
    try:
        found = resolve(name, registry, what, _example(what))
    except UserError as error:
        raise NamedError([("", str(error))]) from error
    if not isinstance(found, type):
        raise NamedError([("", f"{name!r} is a {type(found).__name__}; name a class")])
    if not issubclass(found, base):
        legal = " or ".join(_qualified(kind) for kind in (base if isinstance(base, tuple) else (base,)))
        raise NamedError([("", f"{name!r} is not a subclass of {legal}; derive it from that class")])
    return found


def _qualified(kind: type) -> str:
    """The name under which users import a class."""
    package = "sdpo" if kind.__module__.startswith("sdpo.") else kind.__module__
    return f"{package}.{kind.__name__}"


@dataclasses.dataclass(frozen=True)
class _Field:
    """A field that a configuration can set: a named object itself, or plain data that pydantic reads and writes.

    Attributes:
        required: whether the field has no default.
        kind: registry, base and kind of the object that the field holds; None for plain data.
        adapter: reads and writes plain data.
    """

    required: bool
    kind: tuple[Mapping[str, type], type, str] | None
    adapter: TypeAdapter[Any] | None

    def read(self, setting: Any) -> tuple[Any, Any]:
        """The value of the field, and its plain data, from what a configuration holds."""
        if self.kind is not None:
            inner: Named[Any] = validate_named(setting, *self.kind)
            return inner.built, inner.plain
        assert self.adapter is not None
        try:
            value = self.adapter.validate_python(setting)
        except ValidationError as error:
            places = [(".".join(map(str, e["loc"])), f"{e['msg']}, got {e['input']!r}") for e in error.errors()]
            raise NamedError(places) from error
        return value, self.adapter.dump_python(value, mode="json")

    def write(self, value: Any) -> Any:
        """The plain data of the field's value."""
        if self.kind is None:
            return self.read(value)[1]
        found: type = type(value)
        fields = {key: _write(value, key) for key in _fields(found)}
        return Named(value, name_of(found, self.kind[0]), fields).plain


@functools.cache
def _fields(found: type) -> dict[str, _Field]:
    """The fields of a class that a configuration can set, by name."""
    if not dataclasses.is_dataclass(found):
        return {}
    return {field.name: _describe(found, field) for field in dataclasses.fields(found) if field.init}


def _describe(found: type, field: dataclasses.Field[Any]) -> _Field:
    required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    try:
        hint = _hint(found, field)
        hint = get_origin(hint) if get_origin(hint) in _NESTED else hint  # Algorithm[Any]
        for base, (registry, what) in _NESTED.items():
            if isinstance(hint, type) and issubclass(hint, base):
                return _Field(required, (registry, hint, what), None)
        return _Field(required, None, TypeAdapter(hint))
    except Exception as error:  # a name that only a type checker imports, or a type that pydantic does not know
        advice = "use numbers, texts, lists or mappings, or field(init=False)"
        message = f"a configuration cannot hold the type of this field ({cause(error)}); {advice}"
        raise NamedError([(field.name, message)]) from error


def _hint(found: type, field: dataclasses.Field[Any]) -> Any:
    """The type of a dataclass's field, evaluated in the module of the class that declares it."""
    declares = [c for c in found.__mro__ if vars(c).get("__dataclass_fields__", {}).get(field.name) is field]
    shim = SimpleNamespace(__annotations__={field.name: field.type})
    return get_type_hints(shim, vars(sys.modules[declares[-1].__module__]), include_extras=True)[field.name]


def _check_keys(settings: Mapping[str, Any], found: type, fields: Mapping[str, _Field], who: str) -> None:
    """Reject unknown fields, and fields that are missing and have no default."""
    decorate = "decorate the class with @dataclass(frozen=True) to give it fields"
    if settings and not dataclasses.is_dataclass(found):
        raise NamedError([("", f"{who} has no fields, but {', '.join(settings)} is given: {decorate}")])
    problems = []
    for key in settings:
        if key not in fields:
            undecorated = key in vars(found).get("__annotations__", {}) and "__dataclass_fields__" not in vars(found)
            hint = f": {decorate}" if undecorated else nearest(key, fields) if fields else " (known: none)"
            problems.append(("", f"unknown key {key!r} of {who}{hint}"))
    for key, field in fields.items():
        if field.required and key not in settings:
            problems.append(("", f"{who} needs the field {key!r}; write {{name: …, {key}: …}}"))
    if problems:
        raise NamedError(problems)


def _construct(found: type, given: dict[str, Any], name: str) -> Any:
    try:
        built = found(**given)
    except ValueError as error:
        raise NamedError([("", cause(error))]) from error
    except Exception as error:  # the class is the user's: building it can raise anything
        raise NamedError([("", f"{name} cannot be built: {type(error).__name__}: {cause(error)}")]) from error
    for key in _fields(found):
        if not all(abs(number) <= LARGEST for number in _numbers(getattr(built, key))):  # NaN compares as false
            raise NamedError([(key, f"must be a finite number of at most {LARGEST}")])
    return built


def _numbers(value: Any) -> Iterator[int | float]:
    """The numbers in a value of plain data."""
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _numbers(inner)
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _numbers(inner)


def _write(built: Any, key: str) -> Any:
    """A field's value as plain data, for `config.yaml`."""
    found: type = type(built)
    try:
        return _fields(found)[key].write(getattr(built, key))
    except NamedError as error:
        raise error.within(key) from error
    except ValueError as error:
        raise NamedError(
            [(key, f"{getattr(built, key)!r} cannot be written to config.yaml: {cause(error)}")]
        ) from error
