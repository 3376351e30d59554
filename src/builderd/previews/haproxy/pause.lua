-- Pause requests to a host whose app is asleep or being replaced; their bodies stay unread in the socket.
--
-- The first paused request of a host registers two tasks for it. "notify" asks the service for the route, once, and asks
-- again only when the service does not answer. "watch" polls the map, in case the service has nothing to say, and ends
-- requests that reached their deadline. Each request sleeps on a queue of its own until one of the tasks wakes it.
--
-- All threads share this script's state, and one runs at a time. Another comes between where a function waits (msleep,
-- pop_wait, the calls of tcp), and nowhere else, since tune.lua.forced-yield is more instructions than any part between
-- two waits has. The counts, and the lists of requests, are changed in such parts alone.

local map_file, wake_socket, most = ...
local routes = Map.new(map_file, Map._str)

local MOST = tonumber(most) -- paused requests of all tenants together
local POLL = 20 -- ms between two lookups in the map
local RETRY = 250 -- ms until the service is asked again, after it did not answer
local ANSWER_TIMEOUT = 35 -- s to wait for its answer: longer than a request is paused
local MAX_PAUSED = 2000 -- paused requests of one host
local WAVE = 4 -- requests of a host that are released at a time
local WAVE_PAUSE = 20 -- ms between two waves

-- host -> { requests = the paused requests, over = true once released, answered = whether the service took the question }
local paused = {}
-- paused request -> its tenant, until it is let go
local tenants = {}
-- tenant -> its paused requests, and those of all tenants
local paused_of, paused_of_all = {}, 0

-- Return the tenant of a route; the host, which is a group of its own then, for a route that names none.
local function tenant_of(host, route)
  return route:match("^[^|]*|[^|]*|[^|]*|[^|]*|[^|]*|[^|]*|[^|]*|([^|]+)") or host
end

local function pauses(route)
  return route ~= nil and (route:find("^asleep|") or route:find("^held|")) ~= nil
end

local function milliseconds()
  local now = core.now()
  return now.sec * 1000 + now.usec // 1000
end

local function count(tenant, number)
  local now = (paused_of[tenant] or 0) + number
  paused_of[tenant] = now > 0 and now or nil
  paused_of_all = paused_of_all + number
end

-- Return true if the tenant may have one more paused request: as many as are free for all, so that others find room.
local function has_room(tenant)
  return (paused_of[tenant] or 0) < MOST - paused_of_all
end

-- Let a request go on, once. One whose visitor has left counts as paused until then.
local function let_go(request, route)
  local tenant = tenants[request]
  if tenant then
    tenants[request] = nil
    count(tenant, -1)
    request.queue:push(route)
  end
end

-- Release all requests with this route; some at a time if it leads to an app, since many apps have a listen backlog of
-- five. After the first ones the map decides, since an app can crash under many requests: if the map pauses (still, or
-- again), the remaining requests are paused anew, and asked for anew.
local function release(host, requests, route)
  for number, request in ipairs(requests) do
    let_go(request, route)
    if number % WAVE == 0 and route:find("^open|") then
      core.msleep(WAVE_PAUSE)
      route = routes:lookup(host) or "gone|"
    end
  end
end

-- Release a pause once; a request that comes later begins another pause.
local function finish(host, pause, route)
  if not pause.over then
    pause.over = true
    paused[host] = nil
    release(host, pause.requests, route or "gone|")
  end
end

-- Return the service's answer: a route, or nil without an answer.
local function ask(host, pause)
  local tcp = core.tcp()
  tcp:settimeout(ANSWER_TIMEOUT)
  local line = nil
  pause.answered = tcp:connect(wake_socket) ~= nil and tcp:send(host .. "\n") ~= nil
  if pause.answered then
    line = tcp:receive("*l")
  end
  tcp:close()
  return line
end

local function notify(host, pause)
  while not pause.over do
    local route = ask(host, pause)
    if route and not pauses(route) then
      return finish(host, pause, route)
    end
    core.msleep(RETRY)
  end
end

local function end_overdue(pause)
  local now, rest = milliseconds(), {}
  for _, request in ipairs(pause.requests) do
    if now < request.deadline then
      rest[#rest + 1] = request
    else
      let_go(request, pause.answered and "" or "unheard|")
    end
  end
  pause.requests = rest
end

local function watch(host, pause)
  core.msleep(POLL)
  while not pause.over do
    local route = routes:lookup(host)
    if not pauses(route) then
      return finish(host, pause, route)
    end
    end_overdue(pause)
    if #pause.requests == 0 then
      pause.over = true
      paused[host] = nil
    end
    core.msleep(POLL)
  end
end

-- Run a task; an error in it releases all requests, so that none waits for ever: the rest, if it was releasing them.
local function guarded(task, host, pause)
  local ok, message = pcall(task, host, pause)
  if not ok then
    core.Alert("pause.lua: " .. tostring(message))
    finish(host, pause, "")
    release(host, pause.requests, "")
  end
end

local function begin(host)
  local pause = { requests = {}, over = false, answered = true }
  paused[host] = pause
  core.register_task(guarded, notify, host, pause)
  core.register_task(guarded, watch, host, pause)
  return pause
end

-- Return the sha256 of the token that a private route requires; nil for a public route.
local function token(route)
  return route:match("^%w+|private|[^|]*|[^|]*|([^|]*)")
end

-- Pause one request; return the route that it is released with, or "" to keep its present route.
local function wait(host, paused_route, deadline)
  local tenant = tenant_of(host, paused_route)
  if not has_room(tenant) then
    return ""
  end
  local pause = paused[host] or begin(host)
  if #pause.requests >= MAX_PAUSED then
    return ""
  end
  local request = { queue = core.queue(), deadline = deadline }
  pause.requests[#pause.requests + 1] = request
  tenants[request] = tenant
  count(tenant, 1)
  return request.queue:pop_wait()
end

core.register_action("pause", { "http-req" }, function(txn)
  local host, before = txn:get_var("txn.host"), txn:get_var("txn.route")
  local deadline = milliseconds() + txn:get_var("txn.max_pause")
  local route = routes:lookup(host)
  while pauses(route) do
    route = wait(host, route, deadline)
  end
  if route == "" then
    return -- the route has not changed, and its page answers the request
  end
  local wanted = token(route or "")
  if wanted and wanted ~= token(before) then
    route = "starting|" -- this visitor's token may be wrong for the new route: the next request checks it
  end
  txn:set_var("txn.route", route or "gone|")
end, 0)
