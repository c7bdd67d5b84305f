-- What a sliding limit of `length` still sees of the period before its `cell`'s, which begins at
-- `start`: `still`, the `share` of what was counted there that a span of this length, ending now,
-- still reaches, in 2^20ths, rounded up twice. Exact: every product stays within 2^53.
-- More may have been taken back of it than was counted.
local before = cell[5] == start - length and max(0, cell[6] + cell[7]) or 0
local elapsed = ms - start
local function share(weight)
  return floor(before / 1048576) * weight + floor((before % 1048576 * weight + 1048575) / 1048576)
end
local still = share(floor(((length - elapsed) * 1048576 + length - 1) / length))
