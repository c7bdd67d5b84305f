-- What a change of configuration leaves in outbox and audit. Needs: journal, append.

-- Whether the outbox holds as much undelivered as a change may find there. Without a ledger nothing
-- is ever delivered, and `announce` bounds the stream itself.
local function crowded(seq, ack, allowed)
  allowed = tonumber(allowed)
  return allowed > 0 and seq - (tonumber(ack) or 0) >= allowed
end

-- The last writes of a change: its delta (KEYS[2]) and its audit entry (KEYS[4]).
local function announce(epoch, seq, ms, op, change, body, allowed)
  local id, d = epoch .. '-' .. int(seq + 1), sub(op, 1, 16) .. encode(3, 128, ms, change, 0, change)
  if allowed == '0' then
    write(nil, 'XADD', KEYS[2], 'MAXLEN', '~', '10000', id, 'd', d, 'b', body)
  else
    write(nil, 'XADD', KEYS[2], id, 'd', d, 'b', body)
  end
  local r = try('XADD', KEYS[4], 'MAXLEN', '~', '10000', '*', 't', int(ms), 'b', body,
    'o', sub(op, 1, 16))
  if type(r) == 'table' then
    unappend(KEYS[2], epoch, seq, 1)
    abort(r)
  end
end
