-- Requests to a host that is about to come (back) wait for it here, their bodies unread in the socket.
--
-- The first who waits for a host makes two tasks for it. One tells the service, once, and hears from it how to go on;
-- while nobody answers it tells again. The other looks at the map, should the service have nothing to say, and at the
-- clock. Each who waits sleeps on a queue of its own until one of the two wakes it.

local map_file, wake_socket = ...
local routes = Map.new(map_file, Map._str)

local LOOK = 20 -- ms between two looks at the map and the clock
local RETRY = 250 -- ms until the service is told again, after it did not answer
local LISTEN = 35 -- s that its answer is waited for: longer than anybody waits
local CROWD = 2000 -- so many may wait for one host
local WAVE = 4 -- so many are let go at once: the queue of connections of many an app takes five
local BUSY = 4 -- so many are let in before the first of them were answered
local PAUSE = 1 -- ms between two waves
local LAST_WAVE = 2000 -- ms until the rest is let go, however slow the app is

-- host -> { crowd = who waits, over = whether that has ended, heard = whether the service answered }
local waiting = {}

local function holds(route)
  return route ~= nil and (route:find("^asleep|") or route:find("^held|")) ~= nil
end

local function milliseconds()
  local now = core.now()
  return now.sec * 1000 + now.usec // 1000
end

local function in_progress(host)
  local entry = core.proxies["activity"].stktable:lookup(host)
  return entry and entry.conn_cur or 0
end

-- Let everybody go by this route, in waves where there is an app to meet them; by the map's once that has held nobody,
-- since much can happen to an app under a crowd: where it holds again by then, who is left waits anew. At first the map
-- may not have yet what the service has just told.
local function let_go(host, crowd, route)
  local deadline = milliseconds() + LAST_WAVE
  local led = false
  for number, one in ipairs(crowd) do
    one.queue:push(route)
    if route:find("^open|") and number % WAVE == 0 then
      local now
      repeat
        core.msleep(PAUSE)
        now = routes:lookup(host)
        led = led or not holds(now)
      until in_progress(host) < BUSY or milliseconds() > deadline
      if led then
        route = now or "gone|"
      end
    end
  end
end

-- Once for each wait: whoever comes from now on waits anew.
local function finish(host, place, route)
  if not place.over then
    place.over = true
    waiting[host] = nil
    let_go(host, place.crowd, route or "gone|")
  end
end

-- The service's answer: a route; nil when it does not answer.
local function ask(host, place)
  local tcp = core.tcp()
  tcp:settimeout(LISTEN)
  local line = nil
  place.heard = tcp:connect(wake_socket) ~= nil and tcp:send(host .. "\n") ~= nil
  if place.heard then
    line = tcp:receive("*l")
  end
  tcp:close()
  return line
end

local function tell(host, place)
  while not place.over do
    local route = ask(host, place)
    if route and not holds(route) then
      return finish(host, place, route)
    end
    core.msleep(RETRY)
  end
end

local function let_go_who_is_out_of_patience(place)
  local now, rest = milliseconds(), {}
  for _, one in ipairs(place.crowd) do
    if now < one.deadline then
      rest[#rest + 1] = one
    else
      one.queue:push(place.heard and "" or "unheard|")
    end
  end
  place.crowd = rest
end

local function look(host, place)
  while not place.over do
    core.msleep(LOOK)
    local route = routes:lookup(host)
    if not holds(route) then
      return finish(host, place, route)
    end
    let_go_who_is_out_of_patience(place)
    if #place.crowd == 0 then
      place.over = true
      waiting[host] = nil
    end
  end
end

-- A fault of ours must leave nobody waiting for ever.
local function guarded(work, host, place)
  local ok, fault = pcall(work, host, place)
  if not ok then
    core.Alert("hold.lua: " .. tostring(fault))
    finish(host, place, "")
  end
end

local function gather(host)
  local place = { crowd = {}, over = false, heard = true }
  waiting[host] = place
  core.register_task(guarded, tell, host, place)
  core.register_task(guarded, look, host, place)
  return place
end

-- The sha256 of the token that a visitor must have shown; nil where everybody may pass.
local function token(route)
  return route:match("^%w+|private|[^|]*|[^|]*|([^|]*)")
end

-- What the visitor goes by: the route that it was let go by, or nothing where the route stays as it is.
local function wait(host, deadline)
  local place = waiting[host] or gather(host)
  if #place.crowd >= CROWD then
    return ""
  end
  local one = { queue = core.queue(), deadline = deadline }
  place.crowd[#place.crowd + 1] = one
  return one.queue:pop_wait()
end

core.register_action("hold", { "http-req" }, function(txn)
  local host, before = txn:get_var("txn.host"), txn:get_var("txn.route")
  local deadline = milliseconds() + txn:get_var("txn.patience")
  local route = routes:lookup(host)
  while holds(route) do
    route = wait(host, deadline)
  end
  if route == "" then
    return -- the route is as it was, and so is what is said of it
  end
  local wanted = token(route or "")
  if wanted and wanted ~= token(before) then
    route = "starting|" -- it may not be for this visitor any more: let them ask again
  end
  txn:set_var("txn.route", route or "gone|")
end, 0)
