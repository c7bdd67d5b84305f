-- Leases. The header of an account holds, for each lessee (8 bytes): `^<lessee>`, a run of when its
-- lease expires, state (0 live, 1 in doubt), number of its portions, ordinal of its latest call; for
-- each portion `^<lessee><path below the account> <field>`, a run of units left, start and end of the
-- period (of a rate: 0, 0). `^` has the numbers of lessees live and in doubt and when the first
-- thing of them is due, as `P lx` has, or earlier than it is; `^r` until when nothing is granted
-- because somebody asked for the units.
local GRACE, LATE, DOUBT = 5000, 86400000, 16
-- As much of what is left as may be spent and not settled: LeaseRules has the same.
local function ceiling(left)
  if left <= 2 * DOUBT then
    return left < DOUBT and left or DOUBT
  end
  return floor((left + 1) / 2)
end
