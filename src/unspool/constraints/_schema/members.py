"""What is in a cell: nothing at all, or a given value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unspool.constraints._schema.cells import Arrays, Cell, Fixed, Numbers, Strings, kind_of
from unspool.constraints._schema.nodes import canonical
from unspool.constraints._schema.patterns import found_in

if TYPE_CHECKING:
    from unspool.constraints._schema.algebra import Logic


def empty(logic: Logic, cell: Cell) -> bool:
    if isinstance(cell, Fixed):
        return not cell.values
    if isinstance(cell, Numbers):
        if cell.low > cell.high or (cell.low == cell.high and (cell.low_open or cell.high_open)):
            return True
        low, high = cell.integers()
        if cell.whole is False:
            return cell.low == cell.high == low
        return cell.whole is True and low > high
    if isinstance(cell, Strings):
        if cell.most is not None and cell.least > cell.most:
            return True
        if not (cell.patterns or cell.formats or cell.others):
            return False
        if len(cell.patterns) + len(cell.formats) == 1 and not cell.others and not cell.least and cell.most is None:
            return cell.formats == () and found_in(cell.patterns[0]).is_empty
        return cell.expression().is_empty
    if isinstance(cell, Arrays):
        if cell.most is not None and cell.least > cell.most:
            return True
        if any(logic.hopeless(inner) for inner in cell.prefix[: cell.least]):
            return True
        if any(logic.hopeless(inner) for _, inner in cell.contains):
            return True
        return cell.least > len(cell.prefix) and logic.hopeless(cell.rest)
    if cell.most is not None and (cell.least > cell.most or len(cell.required) > cell.most):
        return True
    if any(logic.hopeless(cell.of(name)) for name in cell.required):
        return True
    if cell.rest is False and not cell.keys:
        there = [name for name, inner in cell.named if inner is not False]
        return len(there) < cell.least or any(
            all(name in apart or not names.matches(name) for name in there) for names, apart, _ in cell.some
        )
    return False


def holds(logic: Logic, value: Any, cell: Cell) -> bool:
    """Whether a value is in a cell."""
    if kind_of(value) != cell.kind:
        return False
    if isinstance(cell, Fixed):
        return canonical(value) in {canonical(one) for one in cell.read}
    if isinstance(cell, Numbers):
        whole = float(value).is_integer()
        divides = all(abs(value / step - round(value / step)) < 1e-9 for step in cell.multiples)
        return cell.inside(value) and cell.whole in (None, whole) and divides
    if isinstance(cell, Strings):
        if len(value) < cell.least or (cell.most is not None and len(value) > cell.most):
            return False
        return cell.expression(lengths=False).matches(value)
    if isinstance(cell, Arrays):
        if len(value) < cell.least or (cell.most is not None and len(value) > cell.most):
            return False
        if cell.unique and len({canonical(one) for one in value}) < len(value):
            return False
        return all(logic.satisfies(one, cell.at(place)) for place, one in enumerate(value)) and all(
            any(logic.satisfies(one, inner) for one in value[start:]) for start, inner in cell.contains
        )
    if len(value) < cell.least or (cell.most is not None and len(value) > cell.most):
        return False
    return (
        all(name in value for name in cell.required)
        and all(logic.satisfies(one, cell.of(name)) for name, one in value.items())
        and all(
            any(n not in apart and names.matches(n) and logic.satisfies(one, inner) for n, one in value.items())
            for names, apart, inner in cell.some
        )
    )
