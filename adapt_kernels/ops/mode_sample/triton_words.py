"""The logits of whole groups as tiles [groups, 16], the columns of a thread side by side, wherever a row begins."""

import triton
import triton.language as tl

from adapt_kernels.ops.mode_sample.triton_gate import GROUP

# Bytes of the widest load, which begins at a multiple of them.
GRANULE = tl.constexpr(16)


@triton.jit
def halves(word, HALF: tl.constexpr):
    """The two logits of a word as float32, the one at the lower address first."""
    if HALF:
        low = (word & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
        high = (word >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    else:
        low = (word << 16).to(tl.float32, bitcast=True)
        high = (word & -65536).to(tl.float32, bitcast=True)
    return low, high


@triton.jit
def quarters(tile):
    """The columns of a thread, which lie side by side, as four tiles [groups, 4]."""
    even, odd = tl.split(tl.reshape(tile, [tile.shape[0], 4, 2, 2]))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
def shifted(low, high, bits):
    """The word that begins `bits` into the first of two."""
    both = (high.to(tl.int64) << 32) | (low.to(tl.int64) & 0xFFFFFFFF)
    return (both >> bits).to(tl.int32)


@triton.jit
def load_shifted(words, bits, WORDS: tl.constexpr):
    """A tile of pairs that begin WORDS words and `bits` bits after aligned `words`: a granule, and the one after it.

    Both hold logits of the row, so neither lies outside its allocation.
    """
    a0, a1, a2, a3 = quarters(tl.load(words))
    b0, b1, b2, b3 = quarters(tl.load(words + GRANULE // 4))
    if WORDS == 1:
        a0, a1, a2, a3, b0 = a1, a2, a3, b0, b1
    elif WORDS == 2:
        a0, a1, a2, a3, b0 = a2, a3, b0, b1, b2
    elif WORDS == 3:
        a0, a1, a2, a3, b0 = a3, b0, b1, b2, b3
    even = tl.join(shifted(a0, a1, bits), shifted(a2, a3, bits))
    odd = tl.join(shifted(a1, a2, bits), shifted(a3, b0, bits))
    return tl.reshape(tl.join(even, odd), words.shape)


@triton.jit
def four_shifted(words, bits, WORDS: tl.constexpr):
    """`load_words` from aligned words on."""
    w0, w1 = load_shifted(words, bits, WORDS), load_shifted(words + 16, bits, WORDS)
    return w0, w1, load_shifted(words + 32, bits, WORDS), load_shifted(words + 48, bits, WORDS)


@triton.jit
def load_words(source, group, ALIGNED: tl.constexpr):
    """Pairs of 16-bit logits of whole groups, four tiles [groups, 16].

    ALIGNED: rows begin at multiples of 16 bytes. Others are read in granules, of which two neighbours make one.
    """
    place = group * (GROUP // 2) + tl.arange(0, 16)[None, :]
    if ALIGNED:
        words = tl.multiple_of(source.start.to(tl.pointer_type(tl.int32), bitcast=True), GRANULE) + place
        w0, w1, w2, w3 = tl.load(words), tl.load(words + 16), tl.load(words + 32), tl.load(words + 48)
    else:
        start = source.start.to(tl.int64)
        over = start & (GRANULE - 1)
        words = tl.multiple_of((start - over).to(tl.pointer_type(tl.int32)), GRANULE) + place
        bits = 8 * (over & 3)
        if over == 0:
            w0, w1, w2, w3 = tl.load(words), tl.load(words + 16), tl.load(words + 32), tl.load(words + 48)
        elif over < 4:
            w0, w1, w2, w3 = four_shifted(words, bits, 0)
        elif over < 8:
            w0, w1, w2, w3 = four_shifted(words, bits, 1)
        elif over < 12:
            w0, w1, w2, w3 = four_shifted(words, bits, 2)
        else:
            w0, w1, w2, w3 = four_shifted(words, bits, 3)
    return w0, w1, w2, w3


@triton.jit
def columns_of(w0, w1, w2, w3, HALF: tl.constexpr):
    """float32 logits of the words that `load_words` gives: eight tiles, neighbours in tiles of a pair."""
    a0, a1 = halves(w0, HALF)
    a2, a3 = halves(w1, HALF)
    a4, a5 = halves(w2, HALF)
    a6, a7 = halves(w3, HALF)
    return a0, a1, a2, a3, a4, a5, a6, a7


@triton.jit
def load_columns(source, group, WORDS: tl.constexpr, ALIGNED: tl.constexpr, HALF: tl.constexpr):
    """float32 logits of whole groups, eight tiles [groups, 16]; WORDS: neighbours in tiles of a pair."""
    if WORDS:
        w0, w1, w2, w3 = load_words(source, group, ALIGNED)
        a0, a1, a2, a3, a4, a5, a6, a7 = columns_of(w0, w1, w2, w3, HALF)
    else:
        at = source.start + group * GROUP + tl.arange(0, 16)[None, :]
        a0, a1 = tl.load(at).to(tl.float32), tl.load(at + 16).to(tl.float32)
        a2, a3 = tl.load(at + 32).to(tl.float32), tl.load(at + 48).to(tl.float32)
        a4, a5 = tl.load(at + 64).to(tl.float32), tl.load(at + 80).to(tl.float32)
        a6, a7 = tl.load(at + 96).to(tl.float32), tl.load(at + 112).to(tl.float32)
    return a0, a1, a2, a3, a4, a5, a6, a7
