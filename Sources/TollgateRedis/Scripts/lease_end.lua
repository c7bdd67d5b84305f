#!lua flags=allow-oom
-- Ends what is due of an account's leases: one that was not prolonged keeps only what may have been
-- spent and not settled; that too is free when its horizon has passed, or where an operator says so.
-- All of what a lessee holds is free that is known to be gone with everything settled (`lease_close`).
--
-- KEYS  1 meta · 2 the bucket's accounts with leases · 3 account header · 4... hashes of deeper
--       subjects, then, where there are any, their index
-- ARGV  1 fence text · 2 seen sequence and time · 3 epoch · 4 account · 5 number of deeper hashes
--       then what follows the account in the path of each of these
--       then the lessees (8 bytes) whose doubt is over by an operator's word; and those (8 bytes and
--       '!') that are gone
-- Reply {0, now, leases that came into doubt, doubts that are over, units that are free} · {2, f, seq}
--       {8} not seeded in this epoch · {12} leases are due in hashes that are not among the keys
--
-- Invariants: of a lease that ends as much stays held as its lessee may have spent; what was granted
--   of rates is gone; what is held by the cells is what is left of all leases and reservations.
--   Complexity: O(fields of the header).
-- include: base, journal, hashes, fence, begin, lessee
local OLD, e, depth = true, ARGV[3], tonumber(ARGV[5])
local LEVELS, INDEX = 2, 4 + depth
-- include: rows
local flat = call('HGETALL', KEYS[3])
-- By lessee its number in `all`: {lessee, expires, state, header as found, portions, ordinal}, a portion:
-- {name of its field, path, field of its cell, text}.
local all, of, epoch, summary, mark = {}, {}, nil, nil, nil
for i = 1, #flat, 2 do
  local name, value = flat[i], flat[i + 1]
  if name == 'e' then
    epoch = value
  elseif name == '^' then
    summary = value
  elseif name == '^r' then
    mark = value
  elseif sub(name, 1, 1) == '^' then
    local lessee = sub(name, 2, 9)
    local lease = of[lessee]
    if not lease then
      lease = {lessee, 0, 0, false, {}, 0}
      all[#all + 1], of[lessee] = lease, lease
    end
    if #name == 9 then
      local _
      lease[2], lease[3], _, lease[6] = decode(value)
      lease[4] = value
    else
      local path, field = string.match(sub(name, 10), '^(%S*) (.*)$')
      lease[5][#lease[5] + 1] = {name, path, field, value}
    end
  end
end
if epoch ~= e then
  return {8}
end
local levels, over = {[''] = 1}, {}
for i = 1, depth do
  levels[ARGV[5 + i]] = 1 + i
end
for i = 6 + depth, #ARGV do
  over[sub(ARGV[i], 1, 8)] = #ARGV[i]
end
-- `fields`, `old`: what changes in the header; `gone`, `back`: what goes from it.
local fields, old, gone, back = {}, {}, {}, {}
local function change(name, text, was)
  if text then
    fields[#fields + 1], fields[#fields + 2] = name, text
    old[#fields / 2] = was
  else
    gone[#gone + 1] = name
    back[#back + 1], back[#back + 2] = name, was
  end
end
local live, doubt, due, ended, released, units = 0, 0, nil, 0, 0, 0
for i = 1, #all do
  local lessee, expires, state, header, portions, ordinal = unpack(all[i], 1, 6)
  local ends = expires + GRACE + (state == 1 and LATE or 0)
  local isOver = state == 1 and (ends <= ms or over[lessee]) or over[lessee] == 9
  if isOver or ends <= ms then
    local count = 0
    for p = 1, #portions do
      local name, path, field, text = unpack(portions[p], 1, 4)
      local left, start, ending = decode(text)
      local level = levels[path]
      if not level then
        return {12}
      end
      local isCell = string.find(field, '|', 1, true)
      local keeps = (isOver or not isCell) and 0 or ceiling(left)
      if isCell and keeps < left then
        load(level, {field})
        -- What is gone holds nothing.
        if cellOf(level, field) then
          add(level, field, start, ending, 0, keeps - left)
        end
        units = units + left - keeps
      end
      if keeps == 0 then
        change(name, nil, text)
      else
        count = count + 1
        change(name, encode(keeps, start, ending), text)
      end
    end
    if isOver then
      released = released + 1
    else
      ended = ended + 1
    end
    if count > 0 then
      state, ends = 1, expires + GRACE + LATE
      change('^' .. lessee, encode(expires, 1, count, ordinal), header)
    else
      state = nil
      change('^' .. lessee, nil, header)
    end
  end
  if state == 0 then
    live = live + 1
  elseif state then
    doubt = doubt + 1
  end
  if state then
    due = math.min(due or ends, ends)
  end
end
local text = due and encode(live, doubt, due)
if text ~= summary and (text or summary) then
  change('^', text, summary)
end
if not due and mark then
  change('^r', nil, mark)
end
local score = call('ZSCORE', KEYS[2], ARGV[4])
local wanted = due and int(due) or false
if wanted ~= score then
  write(score and {'ZADD', KEYS[2], score, ARGV[4]} or {'ZREM', KEYS[2], ARGV[4]},
    unpack(wanted and {'ZADD', KEYS[2], wanted, ARGV[4]} or {'ZREM', KEYS[2], ARGV[4]}))
end
if fields[1] or gone[1] then
  writeRows()
  if fields[1] then
    set(KEYS[3], fields, old)
  end
  if gone[1] then
    write({'HSET', KEYS[3], unpack(back)}, 'HDEL', KEYS[3], unpack(gone))
  end
  if ended + released > 0 then
    set(KEYS[1], {'t', int(now)}, {M[3]})
  end
end
return {0, int(ms), ended, released, int(units)}
