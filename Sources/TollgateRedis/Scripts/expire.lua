#!lua flags=allow-oom
-- Ends reservations of one subject whose time has come. What was used of them is charged when it
-- becomes known, so they stay written down for as long as that may take.
--
-- KEYS  1 meta · 2 to 4 nothing of these (the account header is the fifth, as for `settle`)
--       5 account header · 6... hashes of the deeper subjects, from level 2 to the subject's own,
--       then, where there are any, their index; the account's holds, their ends, the bucket's
--       accounts by their first end, then for each reservation where ended ones of its hour lie
-- ARGV  1 fence text · 2 seen sequence · 3 epoch · 4 depth of the subject · 5 subject
--       6... ids of reservations
-- Reply {0, how many ended} · {2, f, seq} · {8} not seeded in this epoch · {10}
--
-- Invariants: only what is HELD and due by Redis's own clock ends here, once; exactly what it still
--   held is free again. Complexity: O(reservations + their counts).
-- include: base, journal, hashes, fence, begin, ending
-- include: rows, hold
local gone = {}
for i = 6, #ARGV do
  local due = call('ZSCORE', KEYS[HOLDS + 1], ARGV[i])
  local bytes = due and tonumber(due) <= ms and call('HGET', KEYS[HOLDS], ARGV[i])
  local hold = bytes and readHold(bytes)
  if hold and hold.subject == ARGV[5] then
    if not free(hold, tonumber(e)) then
      return {10}
    end
    hold.state = 3
    gone[#gone + 1] = {ARGV[i], packHold(hold), bytes, KEYS[HOLDS + i - 3]}
  end
end
if gone[1] then
  writeRows()
  for i = 1, #gone do
    bury(gone[i][4], gone[i][1], gone[i][2], ms + LATE)
    keepHold(gone[i][1], nil, nil, gone[i][3])
  end
  schedule(string.match(ARGV[5], '^[^/]*'), header[2])
  set(KEYS[1], {'t', int(now)}, {M[3]})
end
return {0, #gone}
