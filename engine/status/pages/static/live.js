// Keeps a page right: told of events by the server, it asks for the page again and puts in what has changed.
"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const main = $("main");
  const banner = $("away");
  const live = $("live");
  const stream = document.body.dataset.stream;
  const rewind = () => $("rewind");

  // -- theme ---------------------------------------------------------------------------------
  $("theme").addEventListener("click", () => {
    const dark = document.documentElement.dataset.theme
      ? document.documentElement.dataset.theme === "dark"
      : matchMedia("(prefers-color-scheme: dark)").matches;
    document.documentElement.dataset.theme = dark ? "light" : "dark";
    localStorage.setItem("theme", document.documentElement.dataset.theme);
  });

  // -- what is wrong, if anything --------------------------------------------------------------
  const trouble = { line: false, record: false };
  function tell() {
    banner.hidden = !(trouble.line || trouble.record);
    banner.textContent = trouble.line
      ? "The connection is lost. This page shows what was; it goes on by itself when the server is back."
      : trouble.record ? "The record is away. This page shows what was, and goes on by itself when it is back." : "";
    if (live.hidden) return;
    live.classList.toggle("off", !banner.hidden);
    live.textContent = banner.hidden ? "live" : "not live";
  }

  // -- times that pass -------------------------------------------------------------------------
  function span(seconds) {
    for (const [unit, size] of [["d", 86400], ["h", 3600], ["min", 60]]) {
      if (seconds >= size * 2) return `${Math.round(seconds / size)} ${unit}`;
    }
    return `${Math.max(0, Math.round(seconds))} s`;
  }
  setInterval(() => {
    for (const time of document.querySelectorAll("time[data-ago]")) {
      time.textContent = span((Date.now() - Date.parse(time.dateTime)) / 1000);
    }
  }, 1000);

  // -- the page anew ---------------------------------------------------------------------------
  // Asked at once for the first event, then once more for all that come while it is on its way.
  let asking = false;
  let again = false;
  async function refresh(url = location.href) {
    if (asking) { again = url; return; }
    asking = true;
    try {
      const answer = await fetch(url, { headers: { Accept: "text/html" }, cache: "no-store" });
      if (answer.ok) put(new DOMParser().parseFromString(await answer.text(), "text/html"));
      else if (answer.status === 503) trouble.record = true;
      if (answer.ok) trouble.record = false;
    } catch { trouble.line = true; }
    tell();
    asking = false;
    if (again) { const next = again; again = false; setTimeout(refresh, 60, next); }
    soon();
  }

  // What is under way without an event that tells of its end is asked for again.
  let due = 0;
  function soon() {
    clearTimeout(due);
    if (main.querySelector("[data-soon]")) due = setTimeout(refresh, 1000);
  }
  soon();

  function put(fresh) {
    const order = [...fresh.querySelectorAll("[data-part]")];
    const parts = new Map([...main.querySelectorAll("[data-part]")].map((part) => [part.dataset.part, part]));
    let last = null;
    for (const part of order) {
      const there = parts.get(part.dataset.part);
      parts.delete(part.dataset.part);
      if (!there) {
        const copy = document.importNode(part, true);
        if (last) last.after(copy); else main.append(copy);
        last = copy;
        continue;
      }
      last = there;
      if (there.innerHTML === part.innerHTML || busy(there)) continue;
      const open = [...there.querySelectorAll("details")].map((one) => one.open);
      const back = focused(there);
      there.innerHTML = part.innerHTML;
      if (back) back();
      there.querySelectorAll("details").forEach((one, index) => { one.open = open[index] || false; });
    }
    for (const gone of parts.values()) if (!busy(gone)) gone.remove();
    const title = fresh.querySelector("title");
    if (title) document.title = title.textContent;
  }

  // Who has come somewhere with the keyboard stays there, though what is there is made anew.
  const reachable = "a[href], button, summary, [tabindex]";
  const told = (one) => `${one.tagName} ${one.getAttribute("href")} ${one.getAttribute("name")} ${one.textContent.trim()}`;
  function focused(part) {
    const at = document.activeElement;
    const place = [...part.querySelectorAll(reachable)].indexOf(at);
    if (place < 0) return null;
    const was = told(at);
    return () => {
      const all = [...part.querySelectorAll(reachable)];
      const next = all.find((one) => told(one) === was) || all[Math.min(place, all.length - 1)];
      if (next) next.focus({ preventScroll: true });
    };
  }

  // What somebody types or drags is left alone.
  function busy(part) {
    const at = document.activeElement;
    return part.contains(at) && at.matches("input, select, textarea");
  }

  // -- looking back ----------------------------------------------------------------------------
  let looking = 0;
  main.addEventListener("input", (event) => {
    if (event.target.id !== "at") return;
    const slider = event.target;
    const now = slider.value === slider.max;
    slider.setAttribute("aria-valuetext", `version ${slider.value} of ${slider.max}`);
    rewind().querySelector("output").textContent = `${slider.value} of ${slider.max}`;
    clearTimeout(looking);
    looking = setTimeout(() => {
      const url = new URL(location.href);
      url.search = now ? "" : `?at=${slider.value}`;
      history.replaceState(null, "", url);
      now ? watch() : still();
      refresh(url.href);
    }, 70);
  });

  // -- events ----------------------------------------------------------------------------------
  let source = null;
  let seen = null; // the last position, to go on from where a hidden page stopped
  const onEvent = $("feed") ? feed() : () => refresh();

  function still() {
    if (source) source.close();
    source = null;
    live.hidden = true;
  }

  function watch() {
    if (source || (stream === undefined && !location.pathname.startsWith("/jobs/"))) return;
    const query = new URLSearchParams(stream || "");
    if (stream === undefined) query.set("job", location.pathname.split("/")[2]);
    if (seen) query.set("after", seen);
    source = new EventSource(`/v1/events/stream?${query}`);
    live.hidden = false;
    // Between the page and its stream something may have come.
    source.onopen = () => { trouble.line = false; tell(); if (!$("feed")) refresh(); };
    source.onerror = () => {
      trouble.line = true;
      tell();
      if (source && source.readyState === EventSource.CLOSED) { still(); setTimeout(watch, 1000); }
    };
    source.onmessage = (message) => { seen = message.lastEventId || seen; onEvent(message); };
    source.addEventListener("record", (message) => {
      trouble.record = JSON.parse(message.data).away;
      tell();
      if (!trouble.record && !$("feed")) refresh();
    });
    source.addEventListener("reset", () => location.reload());
  }

  // A browser has six lines to one server: a page that nobody sees gives its own back.
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) still();
    else if (!new URL(location.href).searchParams.has("at")) { watch(); if (!$("feed")) refresh(); }
  });
  if (stream !== undefined) { if (!$("feed")) watch(); }

  // -- the page of events ------------------------------------------------------------------------
  // Rows are made of text alone: what an event says is never taken as markup.
  function feed() {
    const body = $("feed").querySelector("tbody");
    const query = $("feed").dataset.query;
    const most = 2000;
    const follow = $("follow");
    let oldest = null;
    let held = [];

    function cell(row, text, kind) {
      const made = row.insertCell();
      made.textContent = text;
      if (kind) made.className = kind;
      return made;
    }
    function row(event) {
      const made = document.createElement("tr");
      made.dataset.position = event.position;
      cell(made, event.time.slice(11, 23)).title = event.time;
      cell(made, event.position.split("-")[1], "num").title = event.position;
      cell(made, event.type);
      const of = cell(made, "");
      if (event.subject.startsWith("job/")) {
        const link = document.createElement("a");
        link.href = `/jobs/${encodeURIComponent(event.subject.slice(4))}`;
        link.textContent = event.subject.slice(4);
        of.append(link);
      } else of.textContent = "the site";
      cell(made, event.actor.id);
      const facts = Object.entries(event.body).filter(([, value]) => value !== null && value !== "");
      cell(made, facts.map(([name, value]) => `${name}=${typeof value === "object" ? JSON.stringify(value) : value}`)
        .join("  ").slice(0, 300), "facts");
      return made;
    }
    function count() {
      $("count").textContent = held.length
        ? `${held.length} more have come` : `${body.rows.length} events`;
    }
    function add(event) {
      const made = row(event);
      made.className = "fresh";
      body.prepend(made);
      while (body.rows.length > most) body.lastElementChild.remove();
    }
    follow.addEventListener("change", () => {
      if (follow.checked) held.splice(0).forEach(add);
      count();
    });
    async function older(limit) {
      const cursor = oldest ? `&cursor=${oldest}` : "";
      const answer = await fetch(`/v1/events?order=desc&limit=${limit}${cursor}&${query}`, { cache: "no-store" });
      if (!answer.ok) {
        $("count").textContent = (await answer.json()).detail;
        $("older").hidden = true;
        return;
      }
      const page = await answer.json();
      for (const event of page.items) body.append(row(event));
      if (!seen) seen = page.items.length ? page.items[0].position : page.end;
      oldest = page.next;
      $("older").hidden = !page.next;
      count();
    }
    $("older").addEventListener("click", () => older(200));
    older(100).catch(() => { trouble.line = true; tell(); }).then(watch);
    return (message) => {
      const event = JSON.parse(message.data);
      if (follow.checked) add(event); else held.push(event);
      count();
    };
  }
})();
