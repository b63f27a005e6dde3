"""The loop of the arithmetic coder (FORMAT.md, Arithmetic coding), in plain Python that numba compiles as it stands.

One text serves both, with integers below 2**63 throughout. It is one function, our longest: its state is a dozen local
integers that every bit changes; parted, functions would hand them back and forth for every bit, as numba or as Python.
"""

from __future__ import annotations

from typing import Any


def run(
    decoding: bool,
    data: Any,
    size: int,
    symbols: Any,
    rows: int,
    columns: int,
    k: int,
    flags: bool,
    prior: int,
    context: int,
    cells: Any,
    stored: Any,
    last: Any,
    shares: Any,
    log: Any,
    rate: Any,
) -> int:
    """Code `symbols` (rows x columns,) into `data`, or decode them from it.

    Args:
        decoding: whether to write `symbols` from `data`, or the other way round.
        data: the code, `size` bytes; when encoding, zeros with room for `size` bytes.
        symbols: with flags, 0 for what is not stored, else code + 1; without them the codes.
        k: codes are below it; 1 means flags alone.
        prior: a | b << 4, and `context`: n | v << 2, as in FORMAT.md.
        cells: P << 10 | count, as `fresh_cells` makes them; changed.
        stored: (columns,) zeros; changed. Without flags it may be empty, as shares.
        last: (columns,) of k // 2; changed.
        shares: (columns,) 2**32 // (j + 2**b).
        log, rate: LOG and RATE.

    Returns:
        Encoding: the bytes of the code, or -1 where `size` does not hold them. Decoding: how many bytes were asked
        for, or -1 where the code begins impossibly.
    """
    a = 1 << (prior & 15)
    b = 1 << (prior >> 4)
    neighbours = context & 3
    by = context >> 2
    depth_of_code = 0
    while (1 << depth_of_code) < k:
        depth_of_code += 1
    first_leaf = 1 << depth_of_code
    low = 0
    span = (1 << 48) - 1
    at = 0
    if decoding:
        for at in range(6):
            low = low << 8
            if at < size:
                low |= int(data[at])
        at = 6
        if low >= span:
            return -1
    total = 0
    latest = k >> 1
    for i in range(rows):
        overall = max(1, ((2 * total + 1) << 16) // (2 * i * columns + 20))
        log_overall = int(log[overall])
        row_share = (1 << 32) // (i + a)
        from_column = a * overall
        from_row = b * overall
        in_row = 0
        for j in range(columns):
            here = i * columns + j
            symbol = 0
            if not decoding:
                symbol = int(symbols[here])
            likely = 0
            cell = 0
            node = 1
            if flags:
                node = 0  # the flag comes first
                x = max(1, ((int(stored[j]) << 16) + from_column) * row_share >> 32)
                y = max(1, ((in_row << 16) + from_row) * int(shares[j]) >> 32)
                likely = int(log[x]) + int(log[y]) - log_overall
                cell = (min(max(likely, 0), 263) >> 3) << 4
                if neighbours:
                    if j > 0 and symbols[here - 1] != 0:
                        cell += 1
                    if i > 0:
                        if symbols[here - columns] != 0:
                            cell += 2
                        if neighbours == 2:
                            if j > 0 and symbols[here - columns - 1] != 0:
                                cell += 4
                            if j < columns - 1 and symbols[here - columns + 1] != 0:
                                cell += 8
            base = 528
            depth = depth_of_code
            if by == 2:
                base += (4 * int(last[j]) // k) << depth_of_code
            elif by == 3:
                base += (4 * latest // k) << depth_of_code
            elif by == 1:
                base += min(max(((likely - log_overall) >> 3) + 3, 0), 6) << depth_of_code
            while True:
                if node:
                    if depth == 0:
                        break
                    depth -= 1
                    if ((2 * node + 1) << depth) - first_leaf >= k:
                        node = 2 * node
                        continue
                    cell = base + node
                state = int(cells[cell])
                chance = state >> 10
                count = state & 1023
                bound = (span >> 16) * max(1, chance >> 6)
                if decoding:
                    bit = 1 if low < bound else 0
                elif node:
                    bit = ((symbol - (1 if flags else 0)) >> depth) & 1
                else:
                    bit = 1 if symbol else 0
                if bit:
                    span = bound
                    chance += ((4194304 - chance) * int(rate[count])) >> 16
                else:
                    span -= bound
                    chance += (-chance * int(rate[count])) >> 16
                    if decoding:
                        low -= bound
                    else:
                        low += bound
                        if low >= 281474976710656:
                            low -= 281474976710656
                            carry = at - 1
                            while data[carry] == 255:
                                data[carry] = 0
                                carry -= 1
                            data[carry] += 1
                cells[cell] = chance << 10 | (count + 1 if count < 511 else 511)
                if span < 4294967296:
                    span = span << 16
                    if decoding:
                        low = low << 16
                        if at < size:
                            low |= int(data[at]) << 8
                            if at + 1 < size:
                                low |= int(data[at + 1])
                    else:
                        if at + 10 > size:
                            return -1
                        data[at] = low >> 40
                        data[at + 1] = (low >> 32) & 255
                        low = (low & 4294967295) << 16
                    at += 2
                if node:
                    node = 2 * node + bit
                elif bit:
                    node = 1
                    in_row += 1
                    stored[j] += 1
                else:
                    break
            if decoding:
                symbols[here] = (node - first_leaf + (1 if flags else 0)) if node else 0
            if node:
                latest = node - first_leaf
                last[j] = latest
        total += in_row
    if decoding:
        return at
    # Of all numbers from low to low + span, the one with the most zero bytes at its end, which need not be written.
    for kept in range(7):
        rest = (1 << (48 - 8 * kept)) - 1
        number = (low + rest) & ~rest
        if number - low < span:
            break
    if number >= 281474976710656:
        number -= 281474976710656
        carry = at - 1
        while data[carry] == 255:
            data[carry] = 0
            carry -= 1
        data[carry] += 1
    for _ in range(6):
        data[at] = number >> 40
        number = (number << 8) & 281474976710655
        at += 1
    while at > 0 and data[at - 1] == 0:
        at -= 1
    return at
