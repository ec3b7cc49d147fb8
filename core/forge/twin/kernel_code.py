"""LLVM's text of the product of a matrix with vectors, in which the order of every sum is written out.

A sum of ``inputs`` terms runs in 16 lanes: lane l adds up the terms l, l + 16, l + 32 ... by fused multiply-add, then the upper
half of the lanes is added to the lower until one is left, and terms that filled no lanes come last, one after the other.
Nothing of it depends on how many rows or vectors there are, nor on the processor: LLVM keeps the order of floating point
operations unless it is told otherwise, and a fused multiply-add rounds once everywhere.

A tile multiplies some rows with some vectors, so that what is loaded is used several times; a result's bits are the same
in any tile.
"""

from collections.abc import Iterable, Iterator
from itertools import product

LANES = 16
ENTRY = "product"
"""``void product(weight, x, out, rows, inputs, columns, stride)``: ``out[c * stride + r]`` is the sum over i of ``weight[r *
inputs + i] * x[c * inputs + i]``, for rows and columns from 1 on; all counts are i64."""
_WIDEN = {"float": "", "half": "fpext", "bfloat": "fpext", "i8": "sitofp"}
"""LLVM's types of a weight, and how each becomes a float: without rounding, all of them."""
VECTOR = f"<{LANES} x float>"


def code(kind: str, rows: int, columns: int) -> str:
    """The module for weights of LLVM's type ``kind``, with tiles of ``rows`` by ``columns`` and what is left over at the edges.

    >>> print(code("i8", 6, 4).count("define internal"))
    8
    """
    tiles = [(high, wide) for high in (1, rows) for wide in range(1, columns + 1)]
    table = ", ".join(f"ptr @tile.{high}.{wide}" for high, wide in tiles)
    lines = [
        f"declare {VECTOR} @llvm.fma.v{LANES}f32({VECTOR}, {VECTOR}, {VECTOR})",
        "declare float @llvm.fma.f32(float, float, float)",
        "declare void @llvm.prefetch.p0(ptr, i32, i32, i32)",
        f"@tiles = internal constant [{len(tiles)} x ptr] [{table}]",
        *(line for high, wide in tiles for line in _tile(kind, high, wide)),
        _walk(kind, rows, columns),
    ]
    return "\n".join(lines) + "\n"


def _walk(kind: str, rows: int, columns: int) -> str:
    """Tile by tile along the vectors, then the next rows: weights come from memory once."""
    return f"""
define void @{ENTRY}(ptr %w, ptr %x, ptr %out, i64 %rows, i64 %inputs, i64 %columns, i64 %stride) {{
start:
  br label %row
row:
  %r = phi i64 [ 0, %start ], [ %r.next, %row.end ]
  %r.left = sub i64 %rows, %r
  %r.whole = icmp uge i64 %r.left, {rows}
  %r.step = select i1 %r.whole, i64 {rows}, i64 1
  %r.tiles = select i1 %r.whole, i64 {columns - 1}, i64 -1
  %r.offset = mul i64 %r, %inputs
  %w.here = getelementptr {kind}, ptr %w, i64 %r.offset
  br label %column
column:
  %c = phi i64 [ 0, %row ], [ %c.next, %column ]
  %c.left = sub i64 %columns, %c
  %c.whole = icmp uge i64 %c.left, {columns}
  %c.step = select i1 %c.whole, i64 {columns}, i64 %c.left
  %c.offset = mul i64 %c, %inputs
  %x.here = getelementptr float, ptr %x, i64 %c.offset
  %o.column = mul i64 %c, %stride
  %o.offset = add i64 %o.column, %r
  %o.here = getelementptr float, ptr %out, i64 %o.offset
  %index = add i64 %r.tiles, %c.step
  %slot = getelementptr ptr, ptr @tiles, i64 %index
  %tile = load ptr, ptr %slot
  call void %tile(ptr %w.here, ptr %x.here, ptr %o.here, i64 %inputs, i64 %stride)
  %c.next = add i64 %c, %c.step
  %c.more = icmp ult i64 %c.next, %columns
  br i1 %c.more, label %column, label %row.end
row.end:
  %r.next = add i64 %r, %r.step
  %r.more = icmp ult i64 %r.next, %rows
  br i1 %r.more, label %row, label %end
end:
  ret void
}}"""


def _tile(kind: str, rows: int, columns: int) -> Iterator[str]:
    cells = list(product(range(rows), range(columns)))
    yield f"define internal void @tile.{rows}.{columns}(ptr %w, ptr %x, ptr %out, i64 %inputs, i64 %stride) {{"
    yield f"start:\n  %whole = and i64 %inputs, -{LANES}"
    yield from _starts("w", kind, rows)
    yield from _starts("x", "float", columns)
    yield f"  %ahead = mul i64 %inputs, {rows}"
    yield "  %any = icmp ne i64 %whole, 0\n  br i1 %any, label %lanes, label %halves"
    yield "lanes:\n  %i = phi i64 [ 0, %start ], [ %i.next, %lanes ]"
    yield from _sums(kind, cells, "i", VECTOR, dict.fromkeys(cells, "zeroinitializer"), ("start", "lanes"))
    yield f"  %i.next = add i64 %i, {LANES}"
    yield "  %i.more = icmp ult i64 %i.next, %whole\n  br i1 %i.more, label %lanes, label %halves"
    yield "halves:"
    for r, c in cells:
        yield f"  %h.{r}.{c}.{LANES} = phi {VECTOR} [ zeroinitializer, %start ], [ %i.sum.{r}.{c}, %lanes ]"
    for r, c in cells:
        yield from halved(f"h.{r}.{c}")
    yield "  %rest = icmp ult i64 %whole, %inputs\n  br i1 %rest, label %single, label %end"
    yield "single:\n  %j = phi i64 [ %whole, %halves ], [ %j.next, %single ]"
    yield from _sums(kind, cells, "j", "float", {(r, c): f"%h.{r}.{c}" for r, c in cells}, ("halves", "single"))
    yield "  %j.next = add i64 %j, 1"
    yield "  %j.more = icmp ult i64 %j.next, %inputs\n  br i1 %j.more, label %single, label %end"
    yield "end:"
    for r, c in cells:
        yield f"  %y.{r}.{c} = phi float [ %h.{r}.{c}, %halves ], [ %j.sum.{r}.{c}, %single ]"
    for r, c in cells:
        yield f"  %o.{r}.{c}.column = mul i64 %stride, {c}\n  %o.{r}.{c}.offset = add i64 %o.{r}.{c}.column, {r}"
        yield f"  %o.{r}.{c} = getelementptr float, ptr %out, i64 %o.{r}.{c}.offset"
        yield f"  store float %y.{r}.{c}, ptr %o.{r}.{c}, align 4"
    yield "  ret void\n}"


def _starts(name: str, kind: str, count: int) -> Iterator[str]:
    for n in range(count):
        yield f"  %{name}.{n}.offset = mul i64 %inputs, {n}"
        yield f"  %{name}.{n} = getelementptr {kind}, ptr %{name}, i64 %{name}.{n}.offset"


def _sums(
    kind: str,
    cells: Iterable[tuple[int, int]],
    at: str,
    wide: str,
    begin: dict[tuple[int, int], str],
    blocks: tuple[str, str],
) -> Iterator[str]:
    """The inside of a loop over ``at``, from the block before it and in its own: one fused multiply-add for each cell, of type
    ``wide``, a vector or a float."""
    cells = list(cells)
    vector = wide == VECTOR
    narrow = f"<{LANES} x {kind}>" if vector else kind
    intrinsic = f"@llvm.fma.v{LANES}f32" if vector else "@llvm.fma.f32"
    for r, c in cells:
        yield f"  %{at}.acc.{r}.{c} = phi {wide} [ {begin[r, c]}, %{blocks[0]} ], [ %{at}.sum.{r}.{c}, %{blocks[1]} ]"
    for c in sorted({c for _, c in cells}):
        yield f"  %{at}.x.{c}.place = getelementptr float, ptr %x.{c}, i64 %{at}"
        yield f"  %{at}.x.{c} = load {wide}, ptr %{at}.x.{c}.place, align 4"
    for r in sorted({r for r, _ in cells}):
        yield f"  %{at}.w.{r}.place = getelementptr {kind}, ptr %w.{r}, i64 %{at}"
        if vector:  # the same place of the rows that come next
            yield f"  %{at}.w.{r}.next = getelementptr {kind}, ptr %{at}.w.{r}.place, i64 %ahead"
            yield f"  call void @llvm.prefetch.p0(ptr %{at}.w.{r}.next, i32 0, i32 3, i32 1)"
        stored = f"%{at}.w.{r}.stored" if _WIDEN[kind] else f"%{at}.w.{r}"
        yield f"  {stored} = load {narrow}, ptr %{at}.w.{r}.place, align 1"
        if _WIDEN[kind]:
            yield f"  %{at}.w.{r} = {_WIDEN[kind]} {narrow} {stored} to {wide}"
    for r, c in cells:
        operands = f"{wide} %{at}.w.{r}, {wide} %{at}.x.{c}, {wide} %{at}.acc.{r}.{c}"
        yield f"  %{at}.sum.{r}.{c} = call {wide} {intrinsic}({operands})"


def halved(name: str, add: str = "fadd") -> Iterator[str]:
    """From ``%name.16``, the lanes, by halves to the float ``%name``; ``add``, or an intrinsic, brings two together."""
    count = LANES
    while count > 1:
        half = count // 2
        lanes, result, mask = f"<{count} x float>", f"<{half} x float>", f"<{half} x i32>"
        for part, first in (("low", 0), ("high", half)):
            picked = ", ".join(f"i32 {lane}" for lane in range(first, first + half))
            yield f"  %{name}.{count}.{part} = shufflevector {lanes} %{name}.{count}, {lanes} poison, {mask} <{picked}>"
        low, high = f"%{name}.{count}.low", f"%{name}.{count}.high"
        brought = (
            f"{add} {result} {low}, {high}"
            if add == "fadd"
            else f"call {result} @{add}.v{half}f32({result} {low}, {result} {high})"
        )
        yield f"  %{name}.{half} = {brought}"
        count = half
    yield f"  %{name} = extractelement <1 x float> %{name}.1, i32 0"
