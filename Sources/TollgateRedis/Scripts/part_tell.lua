-- Tells the sidecars that something of an account changed, or of all of them (`*`), so that none
-- goes on deciding from memory what is not so any more. Needs: journal.
local function tell(account)
  write(nil, 'PUBLISH', string.match(KEYS[1], '^[^:]+:[^:]+:') .. 'c', account)
end
