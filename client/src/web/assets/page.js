// The page: keeps what it was told and draws it. Everything that comes from outside is set as text,
// never as markup. Asks its own server alone: `events` for what happens, `log/N` for one machine's log.

const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
// Milliseconds without a word after which the connection counts as lost: the server says something
// every ten seconds.
const SILENCE = 25_000;
// The steps on a machine's way, in order. What is out of this order has a word of its own.
const WAY = ["seen", "offered", "boot-server", "loader", "ipxe", "kernel", "initrd", "handed-over", "up"];
// What a person is told aloud when a machine gets there.
const ALOUD = new Set(["seen", "handed-over", "up", "stopped", "left-alone"]);

const machines = new Map();
const rows = new Map();
let words = {};
let run = null;
// Whether machines of more than one interface are shown.
let several = false;
// Milliseconds since the run began, and when we were told.
let clock = { now: 0, told: performance.now() };

// --- words ---------------------------------------------------------------------------------------

function size(octets) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (octets >= 1000 && unit < units.length - 1) { octets /= 1024; unit += 1; }
  return `${octets < 10 && unit > 0 ? octets.toFixed(1) : Math.round(octets)} ${units[unit]}`;
}

function time(milliseconds) {
  const seconds = Math.round(milliseconds / 1000);
  if (seconds < 60) return `${seconds} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${seconds % 60} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

const now = () => clock.now + performance.now() - clock.told;
const ago = (then) => `${time(Math.max(0, now() - then))} ago`;
const word = (step) => words[step] ?? step;

// The download to show: the one with most left.
function shown(machine) {
  const left = (one) => one.size - one.sent;
  return machine.downloads.reduce((best, one) => (!best || left(one) > left(best) ? one : best), null);
}

// --- elements ------------------------------------------------------------------------------------

function make(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key.includes("-") || key === "role") element.setAttribute(key, value);
    else element[key] = value;
  }
  element.append(...children);
  return element;
}

// Sets a text only where it differs: what is selected stays selected.
function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function show(element, on) {
  if (element.hidden === on) element.hidden = !on;
}

// A list of terms; [label, text] without a text is left out.
function fill(list, pairs) {
  const there = pairs.filter(([, text]) => text);
  while (list.children.length > there.length * 2) list.lastChild.remove();
  there.forEach(([label, text], at) => {
    if (!list.children[at * 2]) list.append(make("dt"), make("dd"));
    say(list.children[at * 2], label);
    say(list.children[at * 2 + 1], text);
  });
}

// --- one machine ---------------------------------------------------------------------------------

class Row {
  constructor(id) {
    this.id = id;
    this.log = null;
    this.name = make("span");
    this.about = make("small");
    this.state = make("span", { className: "state" });
    this.detail = make("small");
    this.steps = make("span", { className: "steps", "aria-hidden": "true" }, ...WAY.slice(0, 8).map(() => make("i")));
    this.bar = make("span", { className: "bar" });
    this.progress = make("progress");
    this.amount = make("small");
    this.rate = make("span", { className: "rate" });
    this.left = make("span", { className: "left" });
    this.button = make("button", { type: "button", className: "row", "aria-expanded": "false", "aria-controls": `more-${id}` },
      make("span", { className: "name" }, this.name, this.about),
      make("span", { className: "step" }, this.state, this.detail, this.steps),
      this.bar, this.rate, this.left,
      make("span", { className: "turn", "aria-hidden": "true" }));
    this.button.addEventListener("click", () => this.open(this.more.hidden));
    this.why = make("div", { className: "why" }, make("p", { className: "first" }), make("ol"), make("p", { className: "screen" }));
    this.facts = make("dl", { className: "facts" });
    this.lines = make("ol", { className: "log", tabIndex: 0, "aria-label": "What happened" });
    this.more = make("div", { className: "more", id: `more-${id}`, hidden: true }, this.why, this.facts,
      make("div", {}, make("h3", { textContent: "What happened" }), this.lines));
    this.item = make("li", {}, this.button, this.more);
  }

  open(on) {
    this.button.setAttribute("aria-expanded", String(on));
    show(this.more, on);
    if (on) this.draw();
  }

  draw() {
    const machine = machines.get(this.id);
    const run = shown(machine);
    this.item.className = machine.step;
    say(this.name, machine.mac);
    say(this.about, [machine.vendor, machine.architecture, several ? machine.interface : null].filter(Boolean).join(" · "));
    say(this.state, word(machine.step));
    const detail = machine.step === "stopped" ? `after: ${machine.stop?.step ?? word(machine.reached)}` : machine.attention;
    say(this.detail, detail ?? "");
    this.detail.className = machine.attention ? "warn" : "";
    const far = WAY.indexOf(machine.reached);
    [...this.steps.children].forEach((mark, at) => mark.classList.toggle("done", at <= far));
    if (run) {
      if (run.size > 0) { this.progress.max = run.size; this.progress.value = run.sent; }
      else this.progress.removeAttribute("value");
      this.progress.setAttribute("aria-label", run.what);
      say(this.amount, run.size > 0 ? `${run.what}: ${size(run.sent)} of ${size(run.size)}` : `${run.what}: ${size(run.sent)}`);
      if (!this.progress.isConnected) this.bar.append(this.progress, this.amount);
    } else {
      this.bar.replaceChildren();
    }
    say(this.rate, run?.octets_per_second != null ? `${size(run.octets_per_second)}/s` : "");
    say(this.left, run?.remaining != null ? `${time(run.remaining)} left` : "");
    if (!this.more.hidden) this.drawMore(machine);
  }

  drawMore(machine) {
    const [first, advice, screen] = this.why.children;
    show(this.why, Boolean(machine.stop || machine.attention));
    say(first, machine.stop ? `Nothing more has come since: ${machine.stop.step}. Most likely first:` : machine.attention ?? "");
    const wanted = machine.stop?.advice ?? [];
    if ([...advice.children].map((one) => one.textContent).join("\n") !== wanted.join("\n")) {
      advice.replaceChildren(...wanted.map((text) => make("li", { textContent: text })));
    }
    const words = machine.stop?.screen_words ?? "";
    say(screen, words && `${words[0].toUpperCase()}${words.slice(1)}.`);
    fill(this.facts, [
      ["Hardware address", machine.mac],
      ["Network card by", machine.vendor],
      ["Kind", machine.architecture],
      ["Asked by", { pxe: "its firmware’s PXE", ipxe: "iPXE", http: "its firmware’s HTTP boot" }[machine.firmware]],
      ["Address", machine.address],
      ["Interface here", machine.interface],
      ["First seen", ago(machine.appeared)],
      ["At this step for", time(Math.max(0, now() - machine.since))],
      ["Started from here", machine.boots === 1 ? "once" : machine.boots ? `${machine.boots} times` : ""],
      ...machine.downloads.map((one) => [`Fetches the ${one.what}`,
        `${one.file ? `${one.file}, ` : ""}${size(one.sent)}${one.size ? ` of ${size(one.size)}` : ""} by ${one.protocol.toUpperCase()}`
        + (one.retransmissions ? `, ${one.retransmissions} packets sent again` : "")]),
    ]);
    const stamp = machine.log.join();
    if (this.log !== stamp) {
      this.log = stamp;
      this.fetchLog();
    }
  }

  async fetchLog() {
    try {
      const answer = await fetch(`log/${this.id}`, { cache: "no-store" });
      if (!answer.ok) throw new Error(answer.statusText);
      const entries = await answer.json();
      const end = this.lines.scrollTop + this.lines.clientHeight >= this.lines.scrollHeight - 8;
      this.lines.replaceChildren(...entries.map((entry) =>
        make("li", { className: entry.tone, textContent: `${(entry.at / 1000).toFixed(1).padStart(7)} s  ${entry.text}` })));
      if (end) this.lines.scrollTop = this.lines.scrollHeight;
    } catch {
      // Asked again with the next news of this machine.
      this.log = null;
    }
  }
}

// --- everything else -----------------------------------------------------------------------------

function drawCounts(steps) {
  const parts = Object.entries(steps).map(([step, count]) => `${count} ${word(step)}`);
  say($("counts"), parts.length ? `${machines.size}: ${parts.join(", ")}` : "");
  show($("empty"), machines.size === 0);
}

function line(x1, y1, x2, y2) {
  const element = document.createElementNS(SVG, "path");
  element.setAttribute("d", `M${x1} ${y1}L${x2} ${y2}`);
  return element;
}

// Octets a second of the last five minutes, the present at the right end.
function drawChart(traffic, rate) {
  say($("rate"), `${size(rate)}/s`);
  const most = Math.max(0, ...traffic);
  say($("most"), most ? `most in five minutes: ${size(most)}/s` : "");
  let svg = $("chart").firstElementChild;
  if (!svg) {
    svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("viewBox", "0 0 300 100");
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("role", "img");
    const base = line(0, 99, 300, 99);
    base.setAttribute("class", "base");
    const [area, curve] = ["area", "curve"].map((name) => {
      const path = document.createElementNS(SVG, "path");
      path.setAttribute("class", name);
      return path;
    });
    svg.append(base, area, curve);
    $("chart").append(svg);
  }
  svg.setAttribute("aria-label", `Sent in the last five minutes: now ${size(rate)} a second, at most ${size(most)} a second`);
  const points = traffic.map((octets, at) => `${300 - traffic.length + at} ${99 - (most ? (octets / most) * 94 : 0)}`);
  const [, area, curve] = svg.children;
  curve.setAttribute("d", points.length ? `M${points.join("L")}` : "");
  area.setAttribute("d", points.length ? `M${300 - traffic.length} 99L${points.join("L")}L299 99Z` : "");
}

function drawOpen(outlets, notes) {
  $("outlets").replaceChildren(...(outlets.length ? outlets : [{ lines: [{ label: "", text: "Nothing yet.", tone: "plain" }] }])
    .flatMap(({ lines }) => {
      const titles = lines.filter((one) => !one.label).map((one) => make("p", { className: one.tone, textContent: one.text }));
      const list = make("dl");
      for (const one of lines.filter((each) => each.label)) {
        list.append(make("dt", { textContent: one.label }), make("dd", { className: one.tone, textContent: one.text }));
      }
      return [...titles, list];
    }));
  $("notes").replaceChildren(...notes.map((one) => make("li", { className: one.tone, textContent: one.text })));
  say($("where"), outlets.length ? `on ${outlets.map((one) => one.interface).join(", ")}` : "");
}

function aloud(before, machine) {
  if (before?.step !== machine.step && ALOUD.has(machine.step)) {
    say($("said"), `${machine.mac}: ${word(machine.step)}`);
  }
}

function take(told, whole) {
  clock = { now: told.now, told: performance.now() };
  if (whole) {
    words = told.words;
    // Another run begins with other machines: nothing of the one before is kept.
    const kept = new Set(told.machines.map((one) => one.id));
    for (const id of [...machines.keys()]) {
      if (run === told.run && kept.has(id)) continue;
      machines.delete(id);
      rows.get(id)?.item.remove();
      rows.delete(id);
    }
    run = told.run;
  }
  for (const machine of told.machines) {
    if (!whole) aloud(machines.get(machine.id), machine);
    machines.set(machine.id, machine);
  }
  several = new Set([...machines.values()].map((one) => one.interface)).size > 1;
  for (const { id } of told.machines) {
    let row = rows.get(id);
    if (!row) {
      row = new Row(id);
      rows.set(id, row);
      $("list").append(row.item);
    }
    row.draw();
  }
  drawCounts(told.totals.steps);
  drawChart(told.traffic, told.totals.octets_per_second);
  if (told.outlets) drawOpen(told.outlets, told.notes);
}

// --- the connection ------------------------------------------------------------------------------

let source = null;
let watchdog = 0;

function heard() {
  clearTimeout(watchdog);
  watchdog = setTimeout(() => { lost(); connect(); }, SILENCE);
}

function live() {
  document.body.className = "live";
  say($("link"), "live");
  show($("lost"), false);
}

function lost() {
  if (document.body.className === "lost") return;
  document.body.className = "lost";
  say($("link"), "lost, trying again");
  show($("lost"), run !== null);
}

function connect() {
  source?.close();
  source = new EventSource("events");
  const listen = (name, whole) => source.addEventListener(name, (event) => {
    heard();
    live();
    take(JSON.parse(event.data), whole);
  });
  listen("snapshot", true);
  listen("update", false);
  source.addEventListener("error", () => {
    lost();
    // The browser tries again by itself unless it was refused.
    if (source.readyState === EventSource.CLOSED) {
      clearTimeout(watchdog);
      watchdog = setTimeout(connect, 3000);
    }
  });
}

// Arrow keys, or j and k as in the terminal, go from machine to machine; Escape folds one up.
document.addEventListener("keydown", (event) => {
  if (event.altKey || event.ctrlKey || event.metaKey) return;
  const buttons = [...document.querySelectorAll(".row")];
  const at = buttons.indexOf(document.activeElement);
  const step = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1 }[event.key];
  if (step && buttons.length && (at >= 0 || event.key === "j" || event.key === "k")) {
    event.preventDefault();
    buttons[Math.min(Math.max(at + step, 0), buttons.length - 1)].focus();
  } else if (event.key === "Escape") {
    const row = [...rows.values()].find((one) => one.item.contains(document.activeElement));
    row?.open(false);
    row?.button.focus();
  }
});

// Times go on between two messages.
setInterval(() => {
  for (const row of rows.values()) if (!row.more.hidden) row.draw();
}, 1000);

connect();
