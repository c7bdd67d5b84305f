-- Of the rows in `steps` (`n` of them), the hashes of deeper subjects that are new, of an older epoch,
-- or that live longer now: written whole and no step any more, or given their longer life. Before
-- everything else, and with a journal: whatever fails later gives up by it. Needs: journal, hashes.
giveUp = abort
local kept = 0
for i = 1, n do
  local row = steps[i]
  local key, before = row.write[2], row.e == e and (row.second or 0) + 0 or 0
  local later = max(before, row.expiry or 0)
  kept = kept + 1
  steps[kept] = row
  if later > before then
    if row.e ~= e then
      local stale = row.e and write(nil, 'PEXPIRETIME', key) or 0
      replace(key, {'e', e, 'x', int(later), unpack(row.write, 3)})
      touch(KEYS[row.index], key, max(stale, 0), later, ms)
      kept = kept - 1
    else
      set(key, {'x', int(later)}, {row.second})
      touch(KEYS[row.index], key, before, later, ms)
    end
  end
end
n = kept
