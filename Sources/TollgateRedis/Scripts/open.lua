#!lua flags=allow-oom
-- Opens a bucket's new epoch: compare-and-set, only upward.
--
-- KEYS  1 meta · 2 outbox · 3 marks of what was taken back · 4 where the outbox is set aside
-- ARGV  1 new fence text · 2 new epoch · 3 global version · 4 whether the ledger knows an earlier
--       epoch of this bucket
--       5 the epoch that must stand for its operation records to be whole, -1 where nobody can tell
--         · 6 and the sequence · 7 and the time, ms, that it must have reached
--       8 fence text and 9 sequence as they were found, empty where there was none · 10 for how many
--         ms they have been known to stand so
--       11 the epoch that KEYS[4] is of, as it was found, 0 where there was none; -1 where there is no
--         ledger, and nothing to deliver
-- Reply {0} opened · {1} open already, for this very server · {11, f, seq} refused
--
-- Invariants: the epoch only grows; the outbox starts empty at sequence 0; operation records and
--   the time stay; the previous epoch and its last sequence are noted. Rates start without burst
--   where there was an earlier epoch. Where records were lost (no meta, or one that went back), ids
--   minted before the loss was seen are too old from now on, of both classes: whatever they were
--   answered, they have no second effect and get no other answer.
--   No delta is dropped: whoever opens knows what the ledger had of the outbox when it was read, and
--   not what was written since, or under an epoch that was over. So it is set aside, whole, and
--   `move_late` takes out of it what is not on record. Marks are dropped last: nothing can fail
--   after it.
-- Complexity: O(1); marks, and an outbox without a ledger, are freed in the background.
-- include: base, journal
-- `decide` writes numbers by '%d', which holds all of them only where Redis is built for 64 bits.
assert(format('%d', LARGEST) == '9007199254740991', 'this Redis has integers of 32 bits')
local M = call('HMGET', KEYS[1], 'f', 'seq', 'gv', 'nb', 't', 'ack', 'pf', 'pfseq', 'hm',
  'hv', 'lt', 'lm')
if M[1] == ARGV[1] then
  return {1}
end
local standing = M[1] and tonumber(string.match(M[1], '^%S+ (%d+) '))
if standing and standing >= tonumber(ARGV[2]) then
  return {11, M[1], M[2]}
end
local aside = tonumber(ARGV[11])
if aside >= 0 and aside ~= (standing or 0) then
  return {11, M[1], M[2]}
end
local keeps = aside > 0 and call('EXISTS', KEYS[2]) == 1
if keeps then
  assert(call('EXISTS', KEYS[4]) == 0, 'an outbox of this epoch is set aside already')
end
local now = max(clock(), tonumber(M[5]) or 0)
local fields = {'f', ARGV[1], 'seq', '0', 'gv', ARGV[3]}
local old = {M[1], M[2], M[3]}
if ARGV[4] == '1' or standing then
  fields[#fields + 1], fields[#fields + 2] = 'nb', int(now)
  old[#old + 1] = M[4]
end
fields[#fields + 1], fields[#fields + 2] = 't', int(now)
old[#old + 1] = M[5]
fields[#fields + 1], fields[#fields + 2] = 'ack', '0'
old[#old + 1] = M[6]
if standing then
  fields[#fields + 1], fields[#fields + 2] = 'pf', int(standing)
  old[#old + 1] = M[7]
  fields[#fields + 1], fields[#fields + 2] = 'pfseq', M[2] or '0'
  old[#old + 1] = M[8]
end
fields[#fields + 1], fields[#fields + 2] = 'lm', '0'
old[#old + 1] = M[12]
if keeps then
  local list = (M[11] or '') ~= '' and M[11] .. ' ' or ''
  fields[#fields + 1], fields[#fields + 2] = 'lt', list .. int(aside)
  old[#old + 1] = M[11]
end
local reached, time = tonumber(M[2]) or 0, tonumber(M[5]) or 0
if ARGV[4] == '1' and (standing ~= tonumber(ARGV[5]) or reached < tonumber(ARGV[6])
    or time < tonumber(ARGV[7]) * 1000) then
  local since = (M[1] or '') == ARGV[8] and (M[2] or '') == ARGV[9] and tonumber(ARGV[10]) or 0
  local horizon = floor(now / 1000) - since
  for i = 9, 10 do
    fields[#fields + 1] = i == 9 and 'hm' or 'hv'
    fields[#fields + 1] = int(max(tonumber(M[i]) or 0, horizon))
    old[#old + 1] = M[i]
  end
end
set(KEYS[1], fields, old)
if keeps then
  write({'RENAME', KEYS[4], KEYS[2]}, 'RENAME', KEYS[2], KEYS[4])
  write(nil, 'UNLINK', KEYS[3])
else
  write(nil, 'UNLINK', KEYS[2], KEYS[3])
end
return {0}
