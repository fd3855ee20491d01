"use strict";
// Everything of the image is text here: it is shown by textContent only, never as markup.

const report = JSON.parse(document.getElementById("data").textContent);
const layers = report.layers;
const tree = readTree(report.tree);
const view = { layer: null, root: 0, order: "name", query: "", open: new Set([0]), rows: [], depths: [], selected: -1 };
let totals = sumSizes(null);

// -- the data: report_tree.py is the other side ----------------------------------------------------------------------

function* spread(column) {
  let last = 0;
  for (const value of column) {
    if (value >= 0) yield (last = value);
    else for (let n = value; n; n++) yield last;
  }
}

function readTree(data) {
  const kinds = Int32Array.from(spread(data.kinds)), count = kinds.length;
  const isDirectory = (node) => data.kind_palette[kinds[node]][0] === "d";
  const parents = new Int32Array(count), ends = new Int32Array(count), names = [""];
  const trail = [0];
  for (const name of count > 1 ? data.names.split("/") : []) {
    if (name === "") { ends[trail.pop()] = names.length; continue; }
    const node = names.push(name) - 1;
    parents[node] = trail[trail.length - 1];
    ends[node] = node + 1;
    if (isDirectory(node)) trail.push(node);
  }
  while (trail.length) ends[trail.pop()] = count;
  const targets = new Map(), firsts = new Map();
  for (let node = 0, n = 0; node < count; node++)
    if (data.kind_palette[kinds[node]][0] === "l") targets.set(node, data.targets[n++]);
  for (let n = 0; n < data.first.length; n += 2) firsts.set(data.first[n], data.first[n + 1]);
  return {
    count, names, parents, ends, targets, firsts, isDirectory,
    layers: Int32Array.from(spread(data.layers)),
    sizes: Float64Array.from(spread(data.sizes)),
    times: Int32Array.from(spread(data.times)), timePalette: data.time_palette,
    kind: (node) => data.kind_palette[kinds[node]],
  };
}

// Of every node: its bytes with all below it, how many files that are, and the largest file there, of one layer or all.
function sumSizes(layer) {
  const bytes = new Float64Array(tree.count), files = new Int32Array(tree.count), largest = new Int32Array(tree.count);
  for (let node = tree.count - 1; node >= 0; node--) {
    if (!tree.isDirectory(node)) {
      largest[node] = node;
      if (layer === null || tree.layers[node] === layer) { bytes[node] = tree.sizes[node]; files[node] = 1; }
    } else if (layer !== null && tree.layers[node] === layer && node) files[node] += 1;
    if (!node) break;
    const above = tree.parents[node];
    bytes[above] += bytes[node];
    files[above] += files[node];
    if (!largest[above] || tree.sizes[largest[node]] > tree.sizes[largest[above]]) largest[above] = largest[node];
  }
  return { bytes, files, largest };
}

function* childrenOf(node) {
  for (let child = node + 1; child < tree.ends[node]; child = tree.ends[child]) yield child;
}

function pathOf(node) {
  const names = [];
  for (; node; node = tree.parents[node]) names.push(tree.names[node]);
  return "/" + names.reverse().join("/");
}

function nodeAt(path) {
  let node = 0;
  for (const name of path.split("/").filter(Boolean)) {
    let found = -1;
    for (const child of childrenOf(node)) if (tree.names[child] === name) { found = child; break; }
    if (found < 0) return -1;
    node = found;
  }
  return node;
}

// -- words ---------------------------------------------------------------------------------------------------------------

function sizeText(size) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let n = 0;
  for (; Math.abs(size) >= 1024 && n < 4; n++) size /= 1024;
  return (n ? size.toFixed(1) : size) + " " + units[n];
}

const percentText = (share) => (share * 100).toFixed(1) + " %";
const countText = (count, word) => count.toLocaleString("en") + " " + word + (count === 1 ? "" : "s");
const timeText = (seconds) => {
  const time = new Date(seconds * 1000);
  return isNaN(time) ? String(seconds) : time.toISOString().replace("T", " ").replace(/(\.000)?Z$/, " UTC");
};

function modeText(kind, mode) {
  const letters = [..."rwxrwxrwx"].map((letter, n) => (mode & (256 >> n) ? letter : "-"));
  const special = (bit, place, set, unset) => { if (mode & bit) letters[place] = letters[place] === "x" ? set : unset; };
  special(0o4000, 2, "s", "S");
  special(0o2000, 5, "s", "S");
  special(0o1000, 8, "t", "T");
  return (kind === "f" ? "-" : kind) + letters.join("");
}

const $ = (id) => document.getElementById(id);
const hue = (layer) => String((212 + layer * 137.508) % 360);

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function chip(layer) {
  const element = make("span", "chip", String(layer + 1));
  element.style.setProperty("--hue", hue(layer));
  element.title = "layer " + (layer + 1);
  return element;
}

// -- head and layers -----------------------------------------------------------------------------------------------------

function showHead() {
  document.title = report.name + " - image report";
  $("name").textContent = report.name;
  const created = report.created ? "made " + report.created.replace("T", " ").replace(/\.\d+/, "").replace(/Z$/, " UTC") : "";
  $("facts").textContent = [report.platform, created, report.id].filter(Boolean).join(" · ");
  const sum = (member) => layers.reduce((total, layer) => total + layer[member], 0);
  const facts = [
    ["Size of all layers", sizeText(sum("size"))], ["Compressed", sizeText(sum("stored"))],
    ["Layers", String(layers.length)], ["Files to be seen", totals.files[0].toLocaleString("en")],
    ["Wasted", sizeText(report.waste.wasted)], ["Efficiency", percentText(report.waste.efficiency)],
  ];
  for (const [term, value] of facts) {
    const box = make("div");
    box.append(make("dt", "", term), make("dd", "", value));
    $("summary").append(box);
  }
}

function showLayers() {
  const all = layers.reduce((total, layer) => total + layer.size, 0) || 1;
  layers.forEach((layer, number) => {
    const part = make("button", "layer-colour");
    part.type = "button";
    part.tabIndex = -1;
    part.style.setProperty("--hue", hue(number));
    part.style.flexGrow = String(layer.size / all);
    part.title = `layer ${number + 1}: ${sizeText(layer.size)}`;
    const row = make("button");
    row.type = "button";
    const changes = [["+", layer.added], ["~", layer.modified], ["-", layer.deleted]];
    row.append(
      chip(number), make("span", "command", layer.command || layer.comment || "(no history)"),
      make("span", "changes", changes.map(([sign, count]) => sign + count.toLocaleString("en")).join("  ")),
      make("span", "size", sizeText(layer.size)));
    row.title = `${layer.added} added, ${layer.modified} modified, ${layer.deleted} deleted; ` +
      `${sizeText(layer.stored)} stored\n${layer.diff_id}\n${layer.created}`;
    for (const button of [part, row]) {
      button.dataset.layer = number;
      button.addEventListener("click", () => chooseLayer(view.layer === number ? null : number));
    }
    $("timeline").append(part);
    const item = make("li");
    item.append(row);
    $("layers").append(item);
  });
}

function chooseLayer(layer) {
  view.layer = layer;
  totals = sumSizes(layer);
  for (const button of document.querySelectorAll("[data-layer]"))
    button.setAttribute("aria-pressed", String(Number(button.dataset.layer) === layer));
  $("all-layers").hidden = layer === null;
  $("all-layers").textContent = layer === null ? "" : `Only layer ${layer + 1} ✕`;
  if (!totals.bytes[view.root]) view.root = 0;
  showMap();
  showLargest(20);
  listRows();
}

// -- treemap -------------------------------------------------------------------------------------------------------------

let areas = []; // what is drawn: [x, y, width, height, node], each directory before what is in it

function showMap() {
  const canvas = $("map"), scale = window.devicePixelRatio || 1;
  const width = canvas.clientWidth, height = canvas.clientHeight;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const pen = canvas.getContext("2d"), style = getComputedStyle(document.documentElement);
  const ink = { paper: style.getPropertyValue("--card"), text: style.getPropertyValue("--ink"), line: style.getPropertyValue("--line"),
    colour: style.getPropertyValue("--colour"), vivid: style.getPropertyValue("--vivid") };
  pen.scale(scale, scale);
  pen.fillStyle = ink.paper;
  pen.fillRect(0, 0, width, height);
  pen.textBaseline = "middle";
  areas = [];
  const waiting = [[0, 0, width, height, view.root, 0]];
  while (waiting.length) {
    const [x, y, w, h, node, depth] = waiting.pop();
    areas.push([x, y, w, h, node]);
    const open = tree.isDirectory(node) && w > 6 && h > 6 && w * h > 60;
    if (!open) { drawFile(pen, ink, x, y, w, h, node); continue; }
    const head = depth && w > 46 && h > 34 ? 16 : 0;
    if (depth) drawDirectory(pen, ink, x, y, w, h, node, head);
    const edge = depth && w > 16 && h > 16 ? 1 : 0;
    for (const area of squarified(node, x + edge, y + head + edge, w - 2 * edge, h - head - 2 * edge))
      waiting.push([...area, depth + 1]);
  }
  canvas.setAttribute("aria-label", `Treemap of ${pathOf(view.root)}: ${sizeText(totals.bytes[view.root])}; the file list below has the same`);
  showCrumbs();
}

function drawFile(pen, ink, x, y, w, h, node) {
  const layer = tree.layers[totals.largest[node] || node];
  pen.fillStyle = `hsl(${hue(layer)} ${ink.vivid} ${ink.colour})`;
  pen.fillRect(x, y, Math.max(w - (w > 3 ? 1 : 0), .5), Math.max(h - (h > 3 ? 1 : 0), .5));
  if (w > 40 && h > 14) label(pen, ink, tree.names[node], x + 4, y + Math.min(h / 2, 10), w - 8);
}

function drawDirectory(pen, ink, x, y, w, h, node, head) {
  pen.fillStyle = ink.line;
  pen.fillRect(x, y, w - 1, h - 1);
  if (head) label(pen, ink, tree.names[node] + "/", x + 4, y + 9, w - 8);
}

function label(pen, ink, text, x, y, width) {
  pen.font = "11px system-ui, sans-serif";
  pen.fillStyle = ink.text;
  const fits = Math.floor(width / 5.5);
  if (fits < 3) return;
  pen.save();
  pen.beginPath();
  pen.rect(x, y - 8, width, 16);
  pen.clip();
  pen.fillText(text.length > fits * 2 ? text.slice(0, fits * 2) : text, x, y);
  pen.restore();
}

// Bruls, Huizing, van Wijk: Squarified Treemaps (2000).
function squarified(node, x, y, w, h) {
  const nodes = [...childrenOf(node)].filter((child) => totals.bytes[child] > 0);
  nodes.sort((a, b) => totals.bytes[b] - totals.bytes[a]);
  let left = nodes.reduce((sum, child) => sum + totals.bytes[child], 0);
  const placed = [];
  for (let start = 0; start < nodes.length && w > 0 && h > 0; ) {
    const scale = (w * h) / left, side = Math.min(w, h);
    let end = start, sum = 0, worst = Infinity;
    while (end < nodes.length) {
      const next = sum + totals.bytes[nodes[end]] * scale;
      const most = totals.bytes[nodes[start]] * scale, least = totals.bytes[nodes[end]] * scale;
      const ratio = Math.max((side * side * most) / (next * next), (next * next) / (side * side * least));
      if (ratio > worst) break;
      worst = ratio;
      sum = next;
      end++;
    }
    const thick = sum / side;
    let along = 0;
    for (; start < end; start++) {
      const long = (totals.bytes[nodes[start]] * scale) / thick;
      placed.push(w >= h ? [x, y + along, thick, long, nodes[start]] : [x + along, y, long, thick, nodes[start]]);
      along += long;
      left -= totals.bytes[nodes[start]];
    }
    if (w >= h) { x += thick; w -= thick; } else { y += thick; h -= thick; }
  }
  return placed;
}

function nodeUnder(event) {
  const box = $("map").getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
  for (let n = areas.length - 1; n >= 0; n--) {
    const [left, top, w, h, node] = areas[n];
    if (x >= left && x < left + w && y >= top && y < top + h) return node;
  }
  return -1;
}

function enter(event) {
  let node = nodeUnder(event);
  if (node < 0) return;
  while (node !== view.root && tree.parents[node] !== view.root) node = tree.parents[node];
  if (node === view.root) return;
  if (tree.isDirectory(node)) { view.root = node; $("tip").hidden = true; showMap(); } else reveal(node);
}

function showTip(event) {
  const node = nodeUnder(event), tip = $("tip");
  tip.hidden = node < 0;
  if (tip.hidden) return;
  tip.textContent = `${pathOf(node)} · ${sizeText(totals.bytes[node])}` +
    (tree.isDirectory(node) ? ` in ${countText(totals.files[node], "file")}` : ` · layer ${tree.layers[node] + 1}`);
  const frame = $("map-frame").getBoundingClientRect();
  const x = event.clientX - frame.left, y = event.clientY - frame.top;
  tip.style.left = Math.max(0, Math.min(x + 12, frame.width - tip.offsetWidth)) + "px";
  tip.style.top = (y + 18 + tip.offsetHeight > frame.height ? y - tip.offsetHeight - 8 : y + 18) + "px";
}

function showCrumbs() {
  const trail = [];
  for (let node = view.root; node; node = tree.parents[node]) trail.unshift(node);
  $("crumbs").replaceChildren(...[0, ...trail].map((node) => {
    const crumb = make("button", "", node ? tree.names[node] : "/");
    crumb.type = "button";
    crumb.addEventListener("click", () => { view.root = node; showMap(); });
    return crumb;
  }), make("span", "hint", sizeText(totals.bytes[view.root])));
}

// -- lists ---------------------------------------------------------------------------------------------------------------

function showLargest(most) {
  const files = [];
  for (let node = 0; node < tree.count; node++)
    if (tree.sizes[node] && (view.layer === null || tree.layers[node] === view.layer)) files.push(node);
  files.sort((a, b) => tree.sizes[b] - tree.sizes[a]);
  fill("largest", files.slice(0, most).map((node) => fileItem(pathOf(node), tree.sizes[node], [chip(tree.layers[node])], node)));
  offerMore("more-largest", Math.min(files.length, 500), most, () => showLargest(500));
}

function showWasted(most) {
  const { hidden, count, wasted, dive_score: score } = report.waste;
  const found = count
    ? `${sizeText(wasted)} in ${countText(count, "file")} that later layers delete or replace.` : "No layer hides what a layer below brings.";
  $("wasted-hint").textContent = `${found} Score of dive, which does not count deleted directories: ${percentText(score)}.`;
  fill("wasted", hidden.slice(0, most).map(([path, size, files, from, by, reason]) => {
    const what = files === 1 ? "layer " : `${countText(files, "file")} of layer `;
    return fileItem("/" + path, size, [what, ...from.map(chip), `, ${reason} by layer `, chip(by)], nodeAt(path));
  }));
  offerMore("more-wasted", hidden.length, most, () => showWasted(hidden.length));
}

function fileItem(path, size, note, node) {
  const item = make("li"), name = make(node < 0 ? "span" : "button", "path", path), notes = make("span", "note");
  if (node >= 0) { name.type = "button"; name.addEventListener("click", () => reveal(node)); }
  notes.append(...note);
  item.append(name, make("span", "size", sizeText(size)), notes);
  return item;
}

const fill = (id, items) => $(id).replaceChildren(...items);

function offerMore(id, all, shown, show) {
  $(id).hidden = all <= shown;
  $(id).textContent = `Show ${all.toLocaleString("en")}`;
  $(id).onclick = show;
}

// -- the file tree: only the rows in sight are in the document -----------------------------------------------------------

const rowHeight = window.matchMedia("(pointer: coarse)").matches ? 40 : 28;

const isShown = (node) => view.layer === null || totals.files[node] > 0;

function ordered(node) {
  const nodes = [...childrenOf(node)].filter(isShown);
  return view.order === "size" ? nodes.sort((a, b) => totals.bytes[b] - totals.bytes[a]) : nodes;
}

function listRows() {
  view.rows = [];
  view.depths = [];
  if (view.query) listMatches(); else listOpen();
  const all = view.layer === null ? tree.count - 1 : totals.files[0];
  $("count").textContent = view.query
    ? `${view.rows.length.toLocaleString("en")} found of ${all.toLocaleString("en")}`
    : `${all.toLocaleString("en")} paths` + (view.layer === null ? "" : ` of layer ${view.layer + 1}`);
  $("spacer").style.height = view.rows.length * rowHeight + "px";
  showRows();
}

function listOpen() {
  const waiting = ordered(0).reverse().map((node) => [node, 0]);
  while (waiting.length) {
    const [node, depth] = waiting.pop();
    view.rows.push(node);
    view.depths.push(depth);
    if (tree.isDirectory(node) && view.open.has(node))
      for (const child of ordered(node).reverse()) waiting.push([child, depth + 1]);
  }
}

function listMatches() {
  const words = view.query.toLowerCase(), inPath = words.includes("/");
  let matches = (text) => text.includes(words);
  if (/[*?]/.test(words)) {
    const pattern = words.replace(/[.+^${}()|[\]\\]/g, "\\$&").replace(/\*+/g, inPath ? ".*" : "[^/]*").replace(/\?/g, ".");
    const exact = new RegExp(inPath ? pattern : `^${pattern}$`, "s");
    matches = (text) => exact.test(text);
  }
  const above = inPath ? [""] : null; // the paths of directories: a directory comes before what is in it
  for (let node = 1; node < tree.count; node++) {
    let text = tree.names[node].toLowerCase();
    if (inPath) {
      text = above[tree.parents[node]] + "/" + text;
      if (tree.isDirectory(node)) above[node] = text;
    }
    if ((view.layer === null || tree.layers[node] === view.layer) && matches(text)) view.rows.push(node);
  }
  if (view.order === "size") view.rows.sort((a, b) => totals.bytes[b] - totals.bytes[a]);
  view.depths = new Uint8Array(view.rows.length);
}

function showRows() {
  const frame = $("rows"), height = frame.clientHeight;
  const top = Math.max(0, Math.min(frame.scrollTop, view.rows.length * rowHeight - height)); // as it will be: fewer rows
  const first = Math.max(0, Math.floor(top / rowHeight) - 6);
  const last = Math.min(view.rows.length, Math.ceil((top + height) / rowHeight) + 6);
  const shown = [];
  for (let n = first; n < last; n++) shown.push(row(n));
  $("spacer").replaceChildren(...shown);
  const selected = view.rows.indexOf(view.selected);
  if (selected >= first && selected < last) frame.setAttribute("aria-activedescendant", "row-" + selected);
  else frame.removeAttribute("aria-activedescendant");
}

function row(n) {
  const node = view.rows[n], isDirectory = tree.isDirectory(node), isOpen = view.open.has(node) && !view.query;
  const element = make("div", "row"), name = make("span", "label");
  element.id = "row-" + n;
  element.dataset.node = node;
  element.style.top = n * rowHeight + "px";
  element.style.height = rowHeight + "px";
  element.style.paddingLeft = 10 + Math.min(view.depths[n], 24) * 16 + "px";
  element.setAttribute("role", "treeitem");
  element.setAttribute("aria-level", String(view.depths[n] + 1));
  element.setAttribute("aria-selected", String(node === view.selected));
  if (isDirectory) element.setAttribute("aria-expanded", String(isOpen));
  if (view.query) name.append(make("span", "above", pathOf(tree.parents[node]).replace(/([^/])$/, "$1/")));
  name.append(tree.names[node] + (isDirectory ? "/" : ""));
  if (tree.targets.has(node)) name.append(make("span", "target", " → " + tree.targets.get(node)));
  name.title = pathOf(node);
  const size = tree.isDirectory(node) || tree.kind(node)[0] === "f" ? sizeText(totals.bytes[node]) : "";
  element.append(make("span", "twist", !isDirectory || view.query ? "" : isOpen ? "▾" : "▸"), name, chip(tree.layers[node]), make("span", "size", size));
  return element;
}

function toggle(node) {
  if (view.open.has(node)) view.open.delete(node); else view.open.add(node);
  listRows();
}

function choose(node) {
  view.selected = node;
  showRows();
  showDetails(node);
}

function reveal(node) {
  if (view.layer !== null && !isShown(node)) chooseLayer(null);
  $("search").value = view.query = "";
  for (let above = tree.parents[node]; above; above = tree.parents[above]) view.open.add(above);
  listRows();
  scrollToRow(view.rows.indexOf(node), true);
  choose(node);
  $("tree-title").scrollIntoView({ behavior: "auto", block: "start" });
}

function scrollToRow(n, middle) {
  const frame = $("rows"), top = n * rowHeight;
  if (middle) frame.scrollTop = top - frame.clientHeight / 2;
  else if (top < frame.scrollTop) frame.scrollTop = top;
  else if (top + rowHeight > frame.scrollTop + frame.clientHeight) frame.scrollTop = top + rowHeight - frame.clientHeight;
}

function showDetails(node) {
  const [kind, mode, uid, gid] = tree.kind(node), layer = tree.layers[node], first = tree.firsts.get(node);
  const words = { f: "file", d: "directory", l: "symbolic link", p: "fifo", c: "character device", b: "block device" };
  const facts = [["Path", pathOf(node)], ["Type", words[kind]], ["Mode", `${modeText(kind, mode)} (${mode.toString(8).padStart(4, "0")})`],
    ["Owner", `${uid}:${gid}`], ["Modified", timeText(tree.timePalette[tree.times[node]])]];
  if (kind === "d") facts.push(["Holds", `${sizeText(totals.bytes[node])} in ${countText(totals.files[node], "file")}`]);
  if (kind === "f" && first === undefined) facts.push(["Size", `${sizeText(tree.sizes[node])} (${countText(tree.sizes[node], "byte")})`]);
  if (first !== undefined) facts.push(["Hard link", "the same file as " + pathOf(first)]);
  if (kind === "l") facts.push(["Leads to", tree.targets.get(node)]);
  facts.push(["Layer", `${layer + 1}: ${layers[layer] ? layers[layer].command || "(no history)" : ""}`]);
  $("details").replaceChildren(...facts.flatMap(([term, value]) => [make("dt", "", term), make("dd", "", value)]));
  $("details").hidden = false;
}

function onKey(event) {
  const at = view.rows.indexOf(view.selected), node = view.selected;
  const isDirectory = at >= 0 && tree.isDirectory(node) && !view.query;
  const moves = { ArrowDown: at + 1, ArrowUp: Math.max(at - 1, 0), Home: 0, End: view.rows.length - 1, PageDown: at + 15, PageUp: Math.max(at - 15, 0) };
  let next = moves[event.key];
  if (isDirectory && event.key === "ArrowRight" && !view.open.has(node)) toggle(node);
  else if (isDirectory && event.key === "ArrowLeft" && view.open.has(node)) toggle(node);
  else if (isDirectory && (event.key === "Enter" || event.key === " ")) toggle(node);
  else if (event.key === "ArrowLeft" && at >= 0) next = view.rows.indexOf(tree.parents[node]);
  else if (next === undefined) return;
  event.preventDefault();
  if (next === undefined || next < 0 || !view.rows.length) return;
  next = Math.min(next, view.rows.length - 1);
  scrollToRow(next, false);
  choose(view.rows[next]);
}

// -- start ---------------------------------------------------------------------------------------------------------------

function listen() {
  let waiting = 0, drawn = false;
  $("search").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => { view.query = $("search").value.trim(); $("rows").scrollTop = 0; listRows(); }, 120);
  });
  $("order").addEventListener("change", () => { view.order = $("order").value; listRows(); });
  $("all-layers").addEventListener("click", () => chooseLayer(null));
  $("rows").addEventListener("scroll", () => {
    if (drawn) return;
    drawn = true;
    requestAnimationFrame(() => { drawn = false; showRows(); });
  });
  $("rows").addEventListener("click", (event) => {
    const element = event.target.closest(".row");
    if (!element) return;
    const node = Number(element.dataset.node);
    if (tree.isDirectory(node) && !view.query) toggle(node);
    choose(node);
  });
  $("rows").addEventListener("keydown", onKey);
  $("map").addEventListener("click", enter);
  $("map").addEventListener("pointermove", showTip);
  $("map").addEventListener("pointerleave", () => { $("tip").hidden = true; });
  window.addEventListener("resize", () => { showMap(); showRows(); });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showMap);
}

showHead();
showLayers();
showMap();
showLargest(20);
showWasted(20);
listRows();
listen();
