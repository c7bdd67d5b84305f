-- A sliding limit (kind 4), where `reason`, `left` and `retry` of limit `l` at `b` are found. `reach`:
-- what counts of the period before, the share of it that a span of this length, ending now, still
-- reaches, in 2^20ths, rounded up twice. Exact: every product stays within 2^53.
local cell, amount, length = C[P[b + 4]], P[itemsAt + (P[b + 1] - 1) * 3], P[b + 6]
local start, place = P[cellsAt + (P[b + 4] - 1) * 5 + 2], P[cellsAt + (P[b + 4] - 1) * 5]
if place > 1 then
  -- What is counted now is looked at while the next period runs.
  R[place].expiry = max(R[place].expiry, start + 2 * length + DAY)
end
-- More may have been taken back of it than was counted.
local before = cell[5] == start - length and max(0, cell[6] + cell[7]) or 0
local elapsed = ms - start
local function share(weight)
  return floor(before / 1048576) * weight + floor((before % 1048576 * weight + 1048575) / 1048576)
end
reach = reach or {}
reach[l] = share(floor(((length - elapsed) * 1048576 + length - 1) / length))
local room = P[b + 5] - (cell[2] - cell[4] + cell[3])
if room - reach[l] < amount then
  reason, left = 22, max(0, room - reach[l])
  if amount <= P[b + 5] then
    retry = length - elapsed
    if room >= amount and before > 0 then
      -- The largest weight that leaves room, then how little of the span it is.
      local low, high = 0, 1048576
      while low < high do
        local middle = floor((low + high + 1) / 2)
        if share(middle) <= room - amount then
          low = middle
        else
          high = middle - 1
        end
      end
      retry = math.min(retry, length - floor(low * length / 1048576) - elapsed)
    end
    retry = max(1, retry)
  end
end
