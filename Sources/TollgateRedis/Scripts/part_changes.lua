-- The changes remembered of an account or of the global configuration (KEYS.md, field `op`):
-- 16 bytes of floor, then 40 each, newest first: id, fingerprint, result and time (ms). The floor is
-- the highest id that was dropped: whatever lies at or below it and is not remembered may have had
-- its effect already.
local CHANGES, CHANGE, FLOOR = 32, 40, 16

-- a <= b, byte by byte: '<' of Lua goes by the server's locale.
local function upTo(a, b)
  for i = 1, 16 do
    local x, y = string.byte(a, i), string.byte(b, i)
    if x ~= y then
      return x < y
    end
  end
  return true
end

-- nil: a change that is new; else the reply. `op`: 16 bytes of id and 8 of fingerprint.
local function known(memory, op, ms)
  memory = memory or ''
  local id = sub(op, 1, 16)
  for at = FLOOR + 1, #memory, CHANGE do
    if sub(memory, at, at + 15) == id then
      if sub(memory, at + 16, at + 23) ~= sub(op, 17, 24) then
        return {3, sub(memory, at + 16, at + 19) ~= sub(op, 17, 20) and 0 or 1}
      end
      local result, time = struct.unpack('>dd', memory, at + 24)
      return {1, int(result), int(time)}
    end
  end
  if memory ~= '' and upTo(id, memory) then
    return {4}
  end
  if struct.unpack('>I6', id) - ms > 60000 then
    return {5}
  end
end

-- The floor and entries, newest first, cut to what is remembered.
local function bounded(bottom, entries)
  for at = CHANGES * CHANGE + 1, #entries, CHANGE do
    local gone = sub(entries, at, at + 15)
    if upTo(bottom, gone) then
      bottom = gone
    end
  end
  return bottom .. sub(entries, 1, CHANGES * CHANGE)
end

local function remember(memory, op, result, ms)
  memory = memory or string.rep('\0', FLOOR)
  return bounded(sub(memory, 1, FLOOR),
    struct.pack('>c24dd', op, result, ms) .. sub(memory, FLOOR + 1))
end

-- Two memories of the same thing as one; nil where both are empty.
local function joined(a, b)
  if (a or '') == '' or (b or '') == '' then
    return (a or '') ~= '' and a or (b or '') ~= '' and b or nil
  end
  local all, seen = {}, {}
  for _, memory in ipairs({a, b}) do
    for at = FLOOR + 1, #memory, CHANGE do
      local entry = sub(memory, at, at + CHANGE - 1)
      local id = sub(entry, 1, 16)
      if not seen[id] then
        seen[id] = true
        local time = struct.unpack('>d', entry, 33)
        all[#all + 1] = {time, entry}
      end
    end
  end
  table.sort(all, function(x, y)
    if x[1] ~= y[1] then
      return x[1] > y[1]
    end
    return x[2] < y[2]
  end)
  local entries = {}
  for i = 1, #all do
    entries[i] = all[i][2]
  end
  return bounded(sub(upTo(a, b) and b or a, 1, FLOOR), table.concat(entries))
end
