-- What units cost at `num` for `den` (Price in RateCard.swift has the rule: the sum a rate charged
-- is that of the units rounded down, so an operation is charged what it changes of that). A price is
-- in lowest terms and num x den is at most 2^52, so no product here leaves what a double holds.
local function split(units, den)
  local rest = math.fmod(units, den)
  if rest < 0 then
    rest = rest + den
  end
  return (units - rest) / den, rest
end

-- Of `units` after `before` others of the same month.
local function chargeOf(units, before, num, den)
  local _, m = split(before, den)
  local k, rest = split(units, den)
  local sum = m + rest
  if sum >= den then
    sum, k = sum - den, k + 1
  end
  return k * num + floor(sum * num / den) - floor(m * num / den)
end

-- The most that they can be charged: what a reservation holds.
local function ceilingOf(units, num, den)
  local k, rest = split(units, den)
  return k * num + floor((rest * num + den - 1) / den)
end
