-- How much an operation adds to which counter: what its units are charged to other features, which
-- grants they are burnt from, what no grant covers. The plan is P (layout in RichPlan.swift):
-- `cell(c)` and the like name places in it. Needs: rows, price; ms, and `isHold`: charges are the
-- most they can be, since others may come in between.
local cells, limits, items, pricings = P[2], P[3], P[4], P[5]
local at = 7
for level = 1, P[1] do
  local names = {unpack(P, at + 1, at + P[at])}
  load(level, names)
  at = at + 1 + P[at]
end
local cellsAt = at
local limitsAt = cellsAt + cells * 6
local itemsAt = limitsAt + limits * 9
local drawsAt = itemsAt + items * 8
local pricingsAt = drawsAt + P[6] * 9

-- Of cell c: its level, field, start, end.
local function placeIn(c)
  local b = cellsAt + (c - 1) * 6
  return P[b], P[itemsAt + (P[b + 3] - 1) * 8] .. '|' .. P[b + 5], P[b + 1], P[b + 2]
end

-- What came over into each grant's instance, found before its cell is turned to it.
local carried, amounts, overage, used = {}, {}, {}, {}
for d = 1, P[6] do
  local b = drawsAt + (d - 1) * 9
  local level, name, start = placeIn(P[b])
  local c, amount = cellOf(level, name), P[b + 8]
  local over = 0
  if c and c[1] == start then
    over = c[4]
  elseif P[b + 4] > 0 and P[b + 5] >= 0 then
    local left = P[b + 6] >= 2 and amount or nil
    if c and c[1] == P[b + 5] then
      left = max(0, amount + c[4] - c[2] - c[3])
    end
    over = left and math.min(P[b + 4], max(P[b + 3], math.min(left, amount))) or 0
  end
  carried[d] = over
  local turned = slotOf(level, name, start)
  if turned[1] == start then
    turned[4] = over
  end
end

-- What limits see of cell c; what is not known any more leaves no room.
local function usedOf(c)
  local level, name, start = placeIn(c)
  local cell, slot = slotOf(level, name, start)
  if slot == 2 then
    return cell[2] - cell[4] + cell[3]
  end
  return slot and cell[6] + cell[7] or LARGEST
end

-- What a draw still has.
local function leftOf(d)
  local b = drawsAt + (d - 1) * 9
  if P[b + 2] == 1 then
    return 0
  end
  local level, name, start = placeIn(P[b])
  local cell, slot = slotOf(level, name, start)
  if not slot then
    return 0
  end
  return max(0, P[b + 1] + (slot == 2 and carried[d] or 0) - cell[slot] - cell[slot + 1])
end

local function owedOf(i)
  local deficit = P[itemsAt + (i - 1) * 8 + 7]
  return deficit > 0 and max(0, usedOf(deficit)) or 0
end

-- Beyond its grants nothing may be had of an item, not even for money.
local function isPrepaid(i)
  for l = 1, limits do
    local b = limitsAt + (l - 1) * 9
    if P[b] == 6 and P[b + 1] == i and P[b + 2] == 0 and P[b + 4] == 0 then
      return true
    end
  end
  return false
end

-- What an item's grants have beyond what is owed; never more than a quantity is.
local function creditOf(i)
  local b = itemsAt + (i - 1) * 8
  local left = -owedOf(i)
  for d = P[b + 5], P[b + 5] + P[b + 6] - 1 do
    left = left + leftOf(d)
  end
  return max(0, math.min(left, LARGEST))
end
