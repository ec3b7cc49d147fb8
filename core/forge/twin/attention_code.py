"""LLVM's text of the attention of one new position, over the keys and values of one sequence; all in float32.

As in kernel_code, the order of every sum is written out, so that bits depend on the sequence alone. exp is Cephes' expf: a
power of two, and a polynomial for what is left of the exponent, right to 2 units in the last place.
"""

import struct
from collections.abc import Iterator

from .kernel_code import ENTRY as PRODUCT, LANES, VECTOR, halved

ENTRY = "attend"
"""``void attend(queries, key, value, keys, values, out, scores, heads, group, dim, pitch, count)``: ``heads`` kv heads, each
with the same ``group`` of query heads; ``pitch`` floats of the keys and values from one kv head to the next; ``count``
positions that are seen, of which the last is new and gets ``key`` and ``value`` [heads, dim] first. ``scores`` is room for
``group`` times ``count`` rounded up to 16. ``dim`` is a multiple of 16; all counts are i64."""
_POLYNOMIAL = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
_INTEGERS = f"<{LANES} x i32>"
_HALVES = (8, 4, 2, 1)
_WIDE = 4
"""Vectors of a value that are mixed at once."""


def attention() -> str:
    """Goes behind the product of float32 weights, which it calls."""
    return "\n".join((_DECLARED, *_softmax(), *_mix(_WIDE), *_mix(1), _WALK)) + "\n"


_DECLARED = "\n".join(
    (
        f"declare {VECTOR} @llvm.maxnum.v{LANES}f32({VECTOR}, {VECTOR})",
        "declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)",
        f"declare {VECTOR} @llvm.rint.v{LANES}f32({VECTOR})",
        f"declare {_INTEGERS} @llvm.fptosi.sat.v{LANES}i32.v{LANES}f32({VECTOR})",
        *(f"declare <{half} x float> @llvm.maxnum.v{half}f32(<{half} x float>, <{half} x float>)" for half in _HALVES),
    )
)
_WALK = f"""
define void @{ENTRY}(ptr %q, ptr %key, ptr %value, ptr %k, ptr %v, ptr %o, ptr %p,
  i64 %heads, i64 %group, i64 %dim, i64 %pitch, i64 %count) {{
start:
  %up = add i64 %count, {LANES - 1}
  %stride = and i64 %up, -{LANES}
  %new = sub i64 %count, 1
  %bytes = mul i64 %dim, 4
  br label %head
head:
  %h = phi i64 [ 0, %start ], [ %h.next, %head.end ]
  %k.offset = mul i64 %h, %pitch
  %k.here = getelementptr float, ptr %k, i64 %k.offset
  %v.here = getelementptr float, ptr %v, i64 %k.offset
  %n.offset = mul i64 %h, %dim
  %k.from = getelementptr float, ptr %key, i64 %n.offset
  %v.from = getelementptr float, ptr %value, i64 %n.offset
  %n.to = mul i64 %new, %dim
  %k.to = getelementptr float, ptr %k.here, i64 %n.to
  %v.to = getelementptr float, ptr %v.here, i64 %n.to
  call void @llvm.memcpy.p0.p0.i64(ptr %k.to, ptr %k.from, i64 %bytes, i1 false)
  call void @llvm.memcpy.p0.p0.i64(ptr %v.to, ptr %v.from, i64 %bytes, i1 false)
  %first = mul i64 %h, %group
  %q.offset = mul i64 %first, %dim
  %q.here = getelementptr float, ptr %q, i64 %q.offset
  %o.here = getelementptr float, ptr %o, i64 %q.offset
  call void @{PRODUCT}(ptr %k.here, ptr %q.here, ptr %p, i64 %count, i64 %dim, i64 %group, i64 %stride)
  br label %query
query:
  %g = phi i64 [ 0, %head ], [ %g.next, %query.end ]
  %p.offset = mul i64 %g, %stride
  %p.here = getelementptr float, ptr %p, i64 %p.offset
  %sum = call float @softmax(ptr %p.here, i64 %count, i64 %stride)
  %o.offset = mul i64 %g, %dim
  %o.query = getelementptr float, ptr %o.here, i64 %o.offset
  br label %part
part:
  %d = phi i64 [ 0, %query ], [ %d.next, %part ]
  %left = sub i64 %dim, %d
  %wide = icmp uge i64 %left, {_WIDE * LANES}
  %mix = select i1 %wide, ptr @mix.{_WIDE}, ptr @mix.1
  %step = select i1 %wide, i64 {_WIDE * LANES}, i64 {LANES}
  %v.part = getelementptr float, ptr %v.here, i64 %d
  %o.part = getelementptr float, ptr %o.query, i64 %d
  call void %mix(ptr %p.here, ptr %v.part, ptr %o.part, i64 %count, i64 %dim, float %sum)
  %d.next = add i64 %d, %step
  %d.more = icmp ult i64 %d.next, %dim
  br i1 %d.more, label %part, label %query.end
query.end:
  %g.next = add i64 %g, 1
  %g.more = icmp ult i64 %g.next, %group
  br i1 %g.more, label %query, label %head.end
head.end:
  %h.next = add i64 %h, 1
  %h.more = icmp ult i64 %h.next, %heads
  br i1 %h.more, label %head, label %end
end:
  ret void
}}"""


def _softmax() -> Iterator[str]:
    """``float softmax(scores, count, stride)``: exp of the scores less their maximum, in place, 0 behind them; their sum."""
    yield from _highest()
    yield f"""  br label %exp
exp:
  %j = phi i64 [ 0, %level ], [ %j.next, %exp ]
  %s = phi {VECTOR} [ zeroinitializer, %level ], [ %sum.{LANES}, %exp ]
  %j.place = getelementptr float, ptr %p, i64 %j
  %j.score = load {VECTOR}, ptr %j.place, align 4
  %below = fsub {VECTOR} %j.score, %top.all"""
    yield from _exp("below")
    yield f"""  store {VECTOR} %power, ptr %j.place, align 4
  %sum.{LANES} = fadd {VECTOR} %s, %power
  %j.next = add i64 %j, {LANES}
  %j.more = icmp ult i64 %j.next, %stride
  br i1 %j.more, label %exp, label %end
end:"""
    yield from halved("sum")
    yield "  ret float %sum\n}"


def _highest() -> Iterator[str]:
    """The beginning of softmax: minus infinity behind the scores, and the highest of them in every lane of ``%top.all``."""
    yield f"""
define internal float @softmax(ptr %p, i64 %count, i64 %stride) {{
start:
  %padded = icmp ult i64 %count, %stride
  br i1 %padded, label %pad, label %most
pad:
  %t = phi i64 [ %count, %start ], [ %t.next, %pad ]
  %t.place = getelementptr float, ptr %p, i64 %t
  store float {_float(float("-inf"))}, ptr %t.place, align 4
  %t.next = add i64 %t, 1
  %t.more = icmp ult i64 %t.next, %stride
  br i1 %t.more, label %pad, label %most
most:
  br label %high
high:
  %i = phi i64 [ 0, %most ], [ %i.next, %high ]
  %m = phi {VECTOR} [ {_all(float("-inf"))}, %most ], [ %top.{LANES}, %high ]
  %i.place = getelementptr float, ptr %p, i64 %i
  %i.score = load {VECTOR}, ptr %i.place, align 4
  %top.{LANES} = call {VECTOR} @llvm.maxnum.v{LANES}f32({VECTOR} %m, {VECTOR} %i.score)
  %i.next = add i64 %i, {LANES}
  %i.more = icmp ult i64 %i.next, %stride
  br i1 %i.more, label %high, label %level
level:"""
    yield from halved("top", "llvm.maxnum")
    yield from _splat("top")


def _exp(name: str) -> Iterator[str]:
    """``%power``: e to the power of ``%name``, which is 0 or less, or no number."""
    yield f"  %tiny = fcmp olt {VECTOR} %{name}, {_all(-87.0)}"
    yield f"  %near = select <{LANES} x i1> %tiny, {VECTOR} {_all(-87.0)}, {VECTOR} %{name}"
    yield f"  %twos = fmul {VECTOR} %near, {_all(1.44269504088896341)}"
    yield f"  %whole = call {VECTOR} @llvm.rint.v{LANES}f32({VECTOR} %twos)"
    yield _fma("rest.0", "%whole", _all(-0.693359375), "%near")
    yield _fma("rest", "%whole", _all(2.12194440e-4), "%rest.0")
    yield f"  %term.0 = fadd {VECTOR} zeroinitializer, {_all(_POLYNOMIAL[0])}"
    for power, coefficient in enumerate(_POLYNOMIAL[1:], 1):
        yield _fma(f"term.{power}", f"%term.{power - 1}", "%rest", _all(coefficient))
    yield f"  %square = fmul {VECTOR} %rest, %rest"
    yield f"  %behind = fadd {VECTOR} %rest, {_all(1.0)}"
    yield _fma("fraction", f"%term.{len(_POLYNOMIAL) - 1}", "%square", "%behind")
    yield f"  %number = call {_INTEGERS} @llvm.fptosi.sat.v{LANES}i32.v{LANES}f32({VECTOR} %whole)"
    yield f"  %biased = add {_INTEGERS} %number, {_integers(127)}"
    yield f"  %bits = shl {_INTEGERS} %biased, {_integers(23)}"
    yield f"  %two.power = bitcast {_INTEGERS} %bits to {VECTOR}"
    yield f"  %found = fmul {VECTOR} %fraction, %two.power"
    yield f"  %power = select <{LANES} x i1> %tiny, {VECTOR} zeroinitializer, {VECTOR} %found"


def _mix(vectors: int) -> Iterator[str]:
    """``void mix(weights, values, out, count, dim, sum)``: vectors of the weighted values, by the weights' sum."""
    yield f"define internal void @mix.{vectors}(ptr %p, ptr %v, ptr %o, i64 %count, i64 %dim, float %sum) {{"
    yield "start:\n  br label %one\none:\n  %t = phi i64 [ 0, %start ], [ %t.next, %one ]"
    for n in range(vectors):
        yield f"  %acc.{n} = phi {VECTOR} [ zeroinitializer, %start ], [ %new.{n}, %one ]"
    yield "  %p.place = getelementptr float, ptr %p, i64 %t\n  %weight = load float, ptr %p.place, align 4"
    yield from _splat("weight")
    yield "  %offset = mul i64 %t, %dim"
    for n in range(vectors):
        yield f"  %at.{n} = add i64 %offset, {n * LANES}\n  %place.{n} = getelementptr float, ptr %v, i64 %at.{n}"
        yield f"  %value.{n} = load {VECTOR}, ptr %place.{n}, align 4"
        yield _fma(f"new.{n}", "%weight.all", f"%value.{n}", f"%acc.{n}")
    yield "  %t.next = add i64 %t, 1\n  %t.more = icmp ult i64 %t.next, %count\n  br i1 %t.more, label %one, label %end\nend:"
    yield from _splat("sum")
    for n in range(vectors):
        yield f"  %y.{n} = fdiv {VECTOR} %new.{n}, %sum.all\n  %out.{n} = getelementptr float, ptr %o, i64 {n * LANES}"
        yield f"  store {VECTOR} %y.{n}, ptr %out.{n}, align 4"
    yield "  ret void\n}"


def _fma(name: str, a: str, b: str, c: str) -> str:
    return f"  %{name} = call {VECTOR} @llvm.fma.v{LANES}f32({VECTOR} {a}, {VECTOR} {b}, {VECTOR} {c})"


def _splat(name: str) -> Iterator[str]:
    yield f"  %{name}.first = insertelement {VECTOR} poison, float %{name}, i32 0"
    yield f"  %{name}.all = shufflevector {VECTOR} %{name}.first, {VECTOR} poison, {_INTEGERS} zeroinitializer"


def _all(value: float) -> str:
    return f"<{', '.join([f'float {_float(value)}'] * LANES)}>"


def _integers(value: int) -> str:
    return f"<{', '.join([f'i32 {value}'] * LANES)}>"


def _float(value: float) -> str:
    """A float as LLVM reads it: the bits of the double that is the same number."""
    (single,) = struct.unpack("f", struct.pack("f", value))
    return f"0x{struct.pack('>d', single).hex().upper()}"
