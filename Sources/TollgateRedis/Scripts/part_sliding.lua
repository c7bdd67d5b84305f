-- A sliding limit (kind 4) of `length`, whose `cell` begins at `start`, asked for `amount`: finds
-- `reason`, `left` and `retry` of limit `l` at `b`. `reach`: what counts of the period before.
-- Needs: reach.
reach = reach or {}
reach[l] = still
-- Where more was taken back than was counted, `used` is below zero and the room above 2^53: what is
-- positive goes off first, so that every number that is compared is exact.
local used = cell[2] - cell[4] + cell[3]
local room = P[b + 5] - reach[l] - used
if room < amount then
  reason, left = 22, max(0, room)
  if amount <= P[b + 5] then
    retry = length - elapsed
    local spare = P[b + 5] - amount - used
    if spare >= 0 and before > 0 then
      -- The largest weight that leaves room, then how little of the span it is.
      local low, high = 0, 1048576
      while low < high do
        local middle = floor((low + high + 1) / 2)
        if share(middle) <= spare then
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
