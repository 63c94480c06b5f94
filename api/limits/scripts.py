"""The limits' state in Redis: one Lua script for each operation, so that each is atomic over all hosts.

What is kept, all under the prefix in ``KEYS[1]``: ``clock`` last, ahead, born, reaped; ``holders`` by the end of their lease; ``heard`` the
number of each holder's last command;
``own:<holder>`` its tokens; ``client`` of each ticket ("holder:token"); the lines ``working``, ``queue`` and ``blocked:<client>`` by turn;
``inside`` how many of a client's tickets work or queue; ``blocked`` the clients with a line; ``hits:<client>`` by time. Microseconds.

A holder's name is drawn at random and its tokens are numbers that only grow: what a process does late, after its lease has run out and its
places were given away, names tickets that are gone, and cannot free anybody else's.
"""

from __future__ import annotations

BEAT = 0.3  # seconds between a process's signs of life
LEASE = 10.0  # seconds after which a silent process is dead
DEAF = 1.0  # seconds without a sign of life after which one is dead whose subscription the server has seen end
SILENCE = 2.0  # seconds without any process's sign of life that mean: the server was away, not they
SETTLE = 2.0  # seconds after a silence in which everybody tells what is at work, and nobody else is let in
REAP = 0.25  # seconds between looks for the dead
JUMP = 60.0  # seconds by which the server's clock has to run ahead of a process's reckoning to be taken for moved
SLACK = 7200.0  # seconds that a quota is kept beyond its window, as keys expire by the clock that may be moved

COMMON = (
    f"""
local BLOCKED, QUEUED, WORKING, OVER_RATE, OVER_QUEUE = 0, 1, 2, 3, 4
local LEASE, DEAF, SILENCE, SETTLE, REAP, JUMP, SLACK = {LEASE}e6, {DEAF}e6, {SILENCE}e6, {SETTLE}e6, {REAP}e6, {JUMP}e6, {SLACK}e3
"""
    + """
local space, conf, me, turn, reckoned = KEYS[1], cjson.decode(ARGV[1]), ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local call = redis.call

local function at(name) return space .. name end
local function number(value) return tonumber(value) or 0 end
local function text(value) return string.format('%.0f', value) end

-- What arrives when its sender has given it up and gone on must not undo what came since.
if turn <= number(call('HGET', at'heard', me)) then return redis.error_reply('late') end
call('HSET', at'heard', me, text(turn))

-- The server's clock, which never goes back, nor far ahead of what a process that knew it reckons by its own.
-- After a silence no lease has run out.
local time = call('TIME')
local wall = time[1] * 1000000 + time[2]
local clock = call('HMGET', at'clock', 'last', 'ahead', 'born', 'reaped')
local last, ahead, born, reaped = number(clock[1]), number(clock[2]), number(clock[3]), number(clock[4])
if reckoned > 0 and wall + ahead - reckoned > JUMP then ahead = reckoned - wall end
ahead = math.max(ahead, last - wall)
local now = wall + ahead
if now - last > SILENCE then
    born = now
    for _, holder in ipairs(call('ZRANGE', at'holders', 0, -1)) do call('ZADD', at'holders', text(now + LEASE), holder) end
end
call('HSET', at'clock', 'last', text(now), 'ahead', text(ahead), 'born', text(born))
local settling = math.max(0, born + SETTLE - now)

local function live() call('ZADD', at'holders', text(now + LEASE), me) end

local function put(id, client, state)
    local holder, token = id:match('^(.*):(%d+)$')
    local turn = call('INCR', at'turn')
    call('HSET', at'client', id, client)
    call('SADD', at('own:' .. holder), token)
    if state == BLOCKED then
        call('ZADD', at('blocked:' .. client), turn, id)
        call('SADD', at'blocked', client)
    else
        call('ZADD', at(state == WORKING and 'working' or 'queue'), turn, id)
        call('HINCRBY', at'inside', client, 1)
    end
end

local function remove(id)
    local holder, token = id:match('^(.*):(%d+)$')
    local client = call('HGET', at'client', id)
    if not client then return nil end
    call('HDEL', at'client', id)
    call('SREM', at('own:' .. holder), token)
    if call('ZREM', at'working', id) + call('ZREM', at'queue', id) > 0 then
        if call('HINCRBY', at'inside', client, -1) <= 0 then call('HDEL', at'inside', client) end
    else
        call('ZREM', at('blocked:' .. client), id)
        if call('EXISTS', at('blocked:' .. client)) == 0 then call('SREM', at'blocked', client) end
    end
    return client
end

local function move(id, client, state)
    remove(id)
    put(id, client, state)
    local holder, token = id:match('^(.*):(%d+)$')
    call('PUBLISH', at('bell:' .. holder), token .. ' ' .. state)
end

local function stands(id)
    if call('ZSCORE', at'working', id) then return WORKING end
    return call('ZSCORE', at'queue', id) and QUEUED or BLOCKED
end

local function counts()
    if not conf.queue then return 0, 0 end
    return call('ZCARD', at'working'), call('ZCARD', at'queue')
end

-- Where a request stands that its client does not block.
local function join()
    if not conf.queue then return WORKING end
    local working, queued = counts()
    if working < conf.most and queued == 0 then return WORKING end
    return queued < conf.line and QUEUED or OVER_QUEUE
end

local function choose(client)
    local has = number(call('HGET', at'inside', client)) > 0 or call('EXISTS', at('blocked:' .. client)) == 1
    if conf.block and has then return BLOCKED end
    return join()
end

-- Gives free places to the queue, then lets in each client's next, in the order in which they came.
local function advance(clients)
    if settling > 0 then return end
    local free = conf.queue and conf.most - call('ZCARD', at'working') or 1e9
    if free > 0 then
        for _, id in ipairs(call('ZRANGE', at'queue', 0, free - 1)) do move(id, call('HGET', at'client', id), WORKING) end
    end
    local firsts = {}
    for _, client in ipairs(clients) do
        local first = call('ZRANGE', at('blocked:' .. client), 0, 0, 'WITHSCORES')
        if first[1] then table.insert(firsts, {turn = number(first[2]), client = client, id = first[1]}) end
    end
    table.sort(firsts, function(a, b) return a.turn < b.turn end)
    for _, first in ipairs(firsts) do
        local state = join()
        if number(call('HGET', at'inside', first.client)) == 0 and state ~= OVER_QUEUE then move(first.id, first.client, state) end
    end
end

local function bury(holder)
    local clients = {}
    for _, token in ipairs(call('SMEMBERS', at('own:' .. holder))) do
        table.insert(clients, remove(holder .. ':' .. token))
    end
    call('DEL', at('own:' .. holder))
    call('ZREM', at'holders', holder)
    call('HDEL', at'heard', holder)
    return clients
end

-- Frees the places of the dead. All clients are looked at: some may have stayed outside for want of room.
local function reap()
    if settling > 0 or now - reaped < REAP then return end
    call('HSET', at'clock', 'reaped', text(now))
    local holders = call('ZRANGE', at'holders', 0, -1, 'WITHSCORES')
    for i = 1, #holders, 2 do
        local holder, ends = holders[i], number(holders[i + 1])
        local deaf = call('PUBSUB', 'NUMSUB', at('bell:' .. holder))[2] == 0
        if ends < now or (deaf and ends < now + LEASE - DEAF) then bury(holder) end
    end
    advance(call('SMEMBERS', at'blocked'))
end
"""
)

ENTER = (
    COMMON
    + """
local token, client = ARGV[5], ARGV[6]
local id, hits = me .. ':' .. token, at('hits:' .. client)
if settling > 0 then return {-1, settling} end
live()
local used = 0
local function reset(skip)
    if not conf.rate then return 0 end
    local first = call('ZRANGE', hits, skip, skip, 'WITHSCORES')
    return first[2] and math.max(0, number(first[2]) + conf.window - now) or 0
end
if conf.rate then
    call('ZREMRANGEBYSCORE', hits, '-inf', text(now - conf.window))
    used = call('ZCARD', hits)
    if used >= conf.quota then return {OVER_RATE, used, reset(used - conf.quota), counts()} end
end
local state = choose(client)
if state ~= WORKING then
    reap()
    state = choose(client)
end
if state == OVER_QUEUE then return {state, used, reset(0), counts()} end
if conf.rate then
    call('ZADD', hits, text(now), id)
    call('PEXPIRE', hits, text(math.ceil(conf.window / 1000 + SLACK)))
    used = used + 1
end
if conf.block or conf.queue then put(id, client, state) end
return {state, used, reset(0), counts()}
"""
)

LEAVE = (
    COMMON
    + """
local token, client, refund = ARGV[5], ARGV[6], ARGV[7] == '1'
local id = me .. ':' .. token
if refund then call('ZREM', at('hits:' .. client), id) end
advance({remove(id)})
return 0
"""
)

LOOK = (
    COMMON
    + """
-- A sign of life with all that the process knows to have: what the server lost comes back, what an enter left behind whose answer was lost
-- goes. What is at work is at work, whether there is room for it or not.
live()
local mine, gone, found = {}, {}, {settling, now}
for _, claim in ipairs(cjson.decode(ARGV[5])) do
    local token, client, state = claim[1], claim[2], claim[3]
    local id = me .. ':' .. token
    mine[token] = true
    if not call('HGET', at'client', id) then
        put(id, client, state)
    elseif state == WORKING and stands(id) ~= WORKING then
        move(id, client, WORKING)
    end
end
for _, token in ipairs(call('SMEMBERS', at('own:' .. me))) do
    if not mine[token] then
        local client = remove(me .. ':' .. token)
        if client then call('ZREM', at('hits:' .. client), me .. ':' .. token) end
        table.insert(gone, client)
    end
end
advance(gone)
reap()
for token, _ in pairs(mine) do
    table.insert(found, number(token))
    table.insert(found, stands(me .. ':' .. token))
end
return found
"""
)

PART = (
    COMMON
    + """
advance(bury(me))
return 0
"""
)
