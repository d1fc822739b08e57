"""The Triton kernel of the filtered leaky ReLU: upsample, act, downsample, in one pass over a channels-last image.

A program takes one image, a block of channels and a strip of output columns, and walks down the rows. Along the rows
the filters are sums in registers: a ring of the last input rows gives the next row at the raised rate, and every such
row is added into the output rows it belongs to, which are a second ring. Along the columns, where registers cannot be
shifted, a filter is the product with a banded matrix, made once, on the tensor cores. So each sample at the raised rate
is computed once, lives in registers only, and no product with an inserted zero is ever formed along the rows.

Cost per output of one channel at up = down = 2, 12 taps (tile: 53 columns out of 128 at the raised rate out of 64):

    bytes    2 read + 2 written in half precision, + 1 for the codes when training (4 samples of 2 bits)
    FP32     rows: 6 products per input column and row at the raised rate = 14.5, and 12 per output (per rank) = 14.5,
             activation about 7 instructions on 4.8 samples; about 65 issue slots, against about 110 where
             the columns are polyphase sums too (72 products)
    tensor   2 x (64 x 128 + 128 x 64) x 2 / 53 = 1,240 FLOP, mostly zeros of the band, at up to 800 TFLOP/s: 1.6 ps

On an H100 (3.35 TB/s, 30 T issue slots/s) that bounds one 532 x 532 image of 96 channels (27 M outputs) at 0.04 ms by
memory, 0.06 ms by issue and 0.04 ms by the tensor cores: the three are balanced, and issue is the roof. (From data
sheets; benchmarks/gpu.py measures.)

The same kernel with filters exchanged and flipped is the backward pass: it then multiplies by the slopes that the
forward pass recorded, 2 bits a sample (bit 0: not positive, bit 1: clamped), four channels to a byte.

Triton must be importable to import this module; with TRITON_INTERPRET=1 set before, it runs on the CPU.
"""

# Triton's dialect: tuples grow, constants are types, nothing is annotated.
# mypy: ignore-errors
# ruff: noqa: RUF005

from __future__ import annotations

import torch
import triton
import triton.language as tl

# What happens at the raised rate.
ACTIVATE = tl.constexpr(0)
ACTIVATE_AND_RECORD = tl.constexpr(1)
REPLAY = tl.constexpr(2)

# What is summed over the pixels besides.
NO_SUMS = tl.constexpr(0)
POWER = tl.constexpr(1)  # of the outputs
GRADIENTS = tl.constexpr(2)  # of bias and scale

# Products along the columns, all summed in float32. Half precision has the mantissa of TF32 (11 bits); bfloat16 has not
# (8), and would round the filters themselves, so it is computed in TF32 too. Three TF32 products make a float32 one.
DOT_DTYPES = {torch.float16: tl.float16, torch.bfloat16: tl.float32, torch.float32: tl.float32}
DOT_PRECISIONS = {torch.float16: "ieee", torch.bfloat16: "tf32", torch.float32: "tf32x3"}


@triton.jit
def _band(taps, num_taps: tl.constexpr, tap, dtype: tl.constexpr):
    """The matrix whose entries are the taps with these indices, 0 where there is no such tap."""
    return tl.load(taps + tap, mask=(tap >= 0) & (tap < num_taps), other=0.0).to(dtype)


@triton.jit
def _line(taps, num_taps: tl.constexpr):
    """All taps of one filter as scalars."""
    line = ()
    for index in tl.static_range(num_taps):
        line = line + (tl.load(taps + index),)
    return line


@triton.jit
def filtered_lrelu_kernel(
    x,  # [N, H, W, C]
    y,  # [N, OH, OW, C]
    codes,  # [N, UH, UW, ceil(C / 4)] uint8, written or read, or unused
    up_taps,  # [UP_RANK, 2, UP_TAPS] float32, the pair along y and x
    down_taps,  # [DOWN_RANK, 2, DOWN_TAPS]
    bias,  # [C], of the inputs; unused in REPLAY
    scale,  # [N, C] float32, of the inputs, or in REPLAY of the outputs
    source,  # [N, OH, OW, C], what the scale multiplied; GRADIENTS only
    sums,  # [row strips * column strips, N, 1 or 2, C] float32
    height,
    width,
    channels,
    out_height,
    out_width,
    code_height,
    code_width,
    code_shift_y,  # position of the codes' origin on this pass's raised grid
    code_shift_x,
    pad_x,
    slope,
    clamp,
    UP: tl.constexpr,
    DOWN: tl.constexpr,
    UP_TAPS: tl.constexpr,
    DOWN_TAPS: tl.constexpr,
    UP_RANK: tl.constexpr,
    DOWN_RANK: tl.constexpr,
    PAD_Y: tl.constexpr,
    MODE: tl.constexpr,
    HAS_CLAMP: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    HAS_SOURCE: tl.constexpr,
    SUMS: tl.constexpr,
    COLUMNS: tl.constexpr,  # outputs per strip
    ROWS: tl.constexpr,  # outputs per strip, a multiple of UP
    TILE_IN: tl.constexpr,
    TILE_UP: tl.constexpr,
    TILE_OUT: tl.constexpr,
    BLOCK_C: tl.constexpr,
    DOT: tl.constexpr,  # dtype of the products along the columns
    PRECISION: tl.constexpr,
):
    """One image, BLOCK_C channels, ROWS x COLUMNS outputs; see the module's first paragraph."""
    DEPTH_IN: tl.constexpr = UP_TAPS // UP
    DEPTH_OUT: tl.constexpr = DOWN_TAPS // DOWN
    STRIDE: tl.constexpr = UP if UP > DOWN else DOWN  # rows at the raised rate per turn of the loop
    BIG: tl.constexpr = 4096  # keeps dividends positive: division truncates

    blocks_c = tl.cdiv(channels, BLOCK_C)
    strip_x = tl.program_id(0) // blocks_c
    strip_y = tl.program_id(1)
    image = tl.program_id(2).to(tl.int64)
    c = (tl.program_id(0) % blocks_c) * BLOCK_C + tl.arange(0, BLOCK_C)
    in_c = c < channels
    code_channels = tl.cdiv(channels, 4)
    out_x0 = strip_x * COLUMNS
    out_y0 = strip_y * ROWS
    up_x0 = out_x0 * DOWN
    up_y0 = out_y0 * DOWN

    # Columns: which inputs this strip needs, and the two banded matrices.
    in_x0 = (up_x0 - pad_x + BIG * UP + UP - 1) // UP - BIG
    index_in = tl.arange(0, TILE_IN)
    index_up = tl.arange(0, TILE_UP)
    index_out = tl.arange(0, TILE_OUT)
    tap_up = UP_TAPS - 1 - pad_x + (up_x0 + index_up[:, None]) - (in_x0 + index_in[None, :]) * UP
    tap_down = DOWN_TAPS - 1 - (index_up[None, :] - index_out[:, None] * DOWN)
    widen = ()
    up_lines = ()
    for rank in tl.static_range(UP_RANK):
        widen = widen + (_band(up_taps + (2 * rank + 1) * UP_TAPS, UP_TAPS, tap_up, DOT),)
        up_lines = up_lines + (_line(up_taps + 2 * rank * UP_TAPS, UP_TAPS),)
    narrow = ()
    down_lines = ()
    for rank in tl.static_range(DOWN_RANK):
        narrow = narrow + (_band(down_taps + (2 * rank + 1) * DOWN_TAPS, DOWN_TAPS, tap_down, DOT),)
        down_lines = down_lines + (_line(down_taps + 2 * rank * DOWN_TAPS, DOWN_TAPS),)

    # Channels last: a row of inputs, outputs, or codes is one contiguous piece of memory.
    x_in = in_x0 + index_in
    x_mask = ((x_in >= 0) & (x_in < width))[:, None] & in_c[None, :]
    x_offsets = x_in[:, None] * channels + c[None, :]
    x_rows = x + image * height * width * channels
    x_out = out_x0 + index_out
    y_mask = ((index_out < COLUMNS) & (x_out < out_width))[:, None] & in_c[None, :]
    y_offsets = x_out[:, None] * channels + c[None, :]
    y_rows = y + image * out_height * out_width * channels
    source_rows = source + image * out_height * out_width * channels
    code_rows = codes + image * code_height * code_width * code_channels
    x_code = up_x0 + index_up - code_shift_x

    if HAS_SCALE:
        factor = tl.load(scale + image * channels + c, mask=in_c, other=0.0).to(tl.float32)
    if HAS_BIAS:
        offset = tl.load(bias + c, mask=in_c, other=0.0).to(tl.float32)

    # Rows: fill the ring of inputs; the row after them is always under way, so that no turn waits for memory.
    in_y = (up_y0 - PAD_Y + BIG * UP + UP - 1) // UP - BIG
    inputs = ()
    for _ in tl.static_range(DEPTH_IN):
        input_inside = x_mask & (in_y >= 0) & (in_y < height)
        value = tl.load(x_rows + in_y * width * channels + x_offsets, mask=input_inside, other=0.0).to(tl.float32)
        if HAS_SCALE and MODE != REPLAY:
            value = value * factor[None, :]
        if HAS_BIAS:
            value = tl.where(input_inside, value + offset[None, :], 0.0)
        inputs = inputs + (value,)
        in_y += 1
    ahead_inside = x_mask & (in_y >= 0) & (in_y < height)
    ahead = tl.load(x_rows + in_y * width * channels + x_offsets, mask=ahead_inside, other=0.0)
    outputs = ()
    for _ in tl.static_range(DEPTH_OUT):
        outputs = outputs + (tl.zeros([TILE_OUT, BLOCK_C], tl.float32),)
    if SUMS != NO_SUMS:
        sum_a = tl.zeros([TILE_OUT, BLOCK_C], tl.float32)
    if SUMS == GRADIENTS:
        sum_b = tl.zeros([TILE_OUT, BLOCK_C], tl.float32)

    rows = min(ROWS, out_height - out_y0)
    for turn in range(tl.cdiv((rows + DEPTH_OUT - 1) * DOWN, STRIDE)):
        for step in tl.static_range(STRIDE):
            up_y = up_y0 + turn * STRIDE + step
            y_code = up_y - code_shift_y
            in_codes = (y_code >= 0) & (y_code < code_height) & (x_code >= 0) & (x_code < code_width)
            x_code_offsets = (y_code * code_width + x_code) * code_channels
            if MODE == REPLAY:
                offsets = x_code_offsets[:, None] + c[None, :] // 4
                packed = tl.load(code_rows + offsets, mask=in_codes[:, None] & in_c[None, :], other=0)

            # Up: along the rows, then along the columns.
            raised = tl.zeros([TILE_UP, BLOCK_C], tl.float32)
            for rank in tl.static_range(UP_RANK):
                line = tl.zeros([TILE_IN, BLOCK_C], tl.float32)
                for slot in tl.static_range(DEPTH_IN):
                    line += inputs[slot] * up_lines[rank][UP_TAPS - 1 - (PAD_Y - step) % UP - slot * UP]
                raised = tl.dot(widen[rank], line.to(DOT), raised, input_precision=PRECISION)

            if MODE == REPLAY:
                code = packed >> ((c % 4) * 2).to(tl.uint8)[None, :]
                raised = tl.where((code & 2) != 0, 0.0, tl.where((code & 1) != 0, raised * slope, raised))
            else:
                positive = raised > 0
                raised = tl.where(positive, raised, raised * slope)
                if HAS_CLAMP:
                    above = raised > clamp
                    below = raised < -clamp
                    # Not minimum and maximum: those would hide a NaN.
                    raised = tl.where(above, clamp, tl.where(below, -clamp, raised))
            if MODE == ACTIVATE_AND_RECORD:
                code = tl.where(positive, 0, 1)
                if HAS_CLAMP:
                    code = tl.where(above | below, 2, code)
                code = tl.where(in_c[None, :], code << ((c % 4) * 2)[None, :], 0)
                code = tl.sum(tl.reshape(code, [TILE_UP, BLOCK_C // 4, 4]), axis=2).to(tl.uint8)
                # Strips overlap: each records what no later one will, so that every byte is written once.
                mine_y = (turn * STRIDE + step < ROWS * DOWN) | (out_y0 + ROWS >= out_height)
                mine_x = (index_up < COLUMNS * DOWN) | (out_x0 + COLUMNS >= out_width)
                four = (tl.program_id(0) % blocks_c) * (BLOCK_C // 4) + tl.arange(0, BLOCK_C // 4)
                mask = (in_codes & mine_x & mine_y)[:, None] & (four < code_channels)[None, :]
                tl.store(code_rows + x_code_offsets[:, None] + four[None, :], code, mask=mask)

            # Down: along the columns, then along the rows.
            for rank in tl.static_range(DOWN_RANK):
                narrowed = tl.dot(narrow[rank], raised.to(DOT), input_precision=PRECISION)
                next_outputs = ()
                for slot in tl.static_range(DEPTH_OUT):
                    tap_y = down_lines[rank][DOWN_TAPS - 1 - step % DOWN - (DEPTH_OUT - 1 - slot) * DOWN]
                    next_outputs = next_outputs + (outputs[slot] + narrowed * tap_y,)
                outputs = next_outputs

            if step % DOWN == DOWN - 1:  # the oldest row is complete
                row = out_y0 + turn * (STRIDE // DOWN) + step // DOWN - (DEPTH_OUT - 1)
                result = outputs[0]
                result_inside = y_mask & (row >= out_y0) & (row < out_y0 + ROWS) & (row < out_height)
                place = row * out_width * channels + y_offsets
                if SUMS == POWER:
                    sum_a += tl.where(result_inside, result * result, 0.0)
                if SUMS == GRADIENTS:
                    result = tl.where(result_inside, result, 0.0)
                    sum_a += result
                    if HAS_SOURCE:
                        origin = tl.load(source_rows + place, mask=result_inside, other=0.0)
                        sum_b += result * origin.to(tl.float32)
                if HAS_SCALE and MODE == REPLAY:
                    result = result * factor[None, :]
                tl.store(y_rows + place, result.to(y.dtype.element_ty), mask=result_inside)
                outputs = outputs[1:] + (tl.zeros([TILE_OUT, BLOCK_C], tl.float32),)

            if (PAD_Y - step) % UP == 0:  # the next row of the raised grid reaches one input further
                value = ahead.to(tl.float32)
                if HAS_SCALE and MODE != REPLAY:
                    value = value * factor[None, :]
                if HAS_BIAS:
                    value = tl.where(ahead_inside, value + offset[None, :], 0.0)
                inputs = inputs[1:] + (value,)
                in_y += 1
                ahead_inside = x_mask & (in_y >= 0) & (in_y < height)
                ahead = tl.load(x_rows + in_y * width * channels + x_offsets, mask=ahead_inside, other=0.0)

    if SUMS != NO_SUMS:
        kinds: tl.constexpr = 2 if SUMS == GRADIENTS else 1
        strip = strip_y * (tl.num_programs(0) // blocks_c) + strip_x
        place = sums + ((strip * tl.num_programs(2) + image) * kinds) * channels + c
        tl.store(place, tl.sum(sum_a, axis=0), mask=in_c)
        if SUMS == GRADIENTS:
            tl.store(place + channels, tl.sum(sum_b, axis=0), mask=in_c)
