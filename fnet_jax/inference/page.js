"use strict";

(() => {
  const { topK, minScore, images } = JSON.parse(document.getElementById("data").textContent);
  const part = (id) => document.getElementById(id);

  // Middling tones: white text is legible on them, and they on light and dark ground.
  const TONES = [
    "#2a6fdb", "#c8431f", "#1f8450", "#8e44ad", "#a56400", "#c2257f",
    "#0d7f8c", "#6b7312", "#5b5fd6", "#b3373f", "#84583c", "#5a6b7f",
  ];
  const FONT_SIZE = 12; // screen pixels, of all labels in the image and the graph
  const PILL_HEIGHT = 21;
  const LONGEST = 26; // characters of a label
  const SMALL_IMAGE = 200; // pixels; smaller ones are shown as the squares they are
  const MAX_ZOOM = 4;
  const MANY_EDGES = 40; // more are drawn paler, below the names

  const state = { index: 0, topK, minScore, pinned: null, hovered: null };
  const view = { scale: 1, x: 0, y: 0 }; // of the graph: screen = scale * world + (x, y)
  let shown; // what of the current image passes the filters
  let world; // layout of the graph

  // ---- Elements. All text from the data goes through here, as text.

  function fill(element, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("--")) element.style.setProperty(name, value);
      else element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
  }
  const html = (tag, attributes, ...children) =>
    fill(document.createElement(tag), attributes, children);
  const svg = (tag, attributes, ...children) =>
    fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

  const pen = document.createElement("canvas").getContext("2d");
  function textWidth(text) {
    pen.font = `600 ${FONT_SIZE}px ${getComputedStyle(document.body).fontFamily}`;
    return pen.measureText(text).width;
  }

  const tone = (object) => TONES[object % TONES.length];
  const objectKey = (object) => `o${object}`;
  const relationKey = (relation) => `r${relation.place}`;
  const clamp = (value, low, high) => Math.max(low, Math.min(high, value));

  function number(value) {
    if (value === 0) return "0";
    return Math.abs(value) < 0.001 ? value.toExponential(1) : value.toPrecision(3);
  }

  /** A name as labels show it; the list and what is read aloud have all of it. */
  function short(name) {
    const letters = [...name];
    return letters.length > LONGEST ? `${letters.slice(0, LONGEST - 1).join("")}…` : name;
  }

  function counted(count, noun) {
    return `${count} ${noun}${count === 1 ? "" : "s"}`;
  }

  const image = () => images[state.index];

  // ---- Filters

  /** The relations (or objects, of an image without relations) that the filters work on. */
  function candidates() {
    const { relations, objects } = image();
    if (relations.length) return relations;
    return objects.map((object, index) => ({ object: index, score: object.score, place: index + 1 }));
  }

  /** As `select` in selection.py: relations and their objects, or else the best objects. */
  function select() {
    const { objects, relations } = image();
    const passing = (item) => item.place <= state.topK && item.score >= state.minScore;
    const chosen = relations.filter(passing);
    const ends = new Set(chosen.flatMap((relation) => [relation.subject, relation.object]));
    if (chosen.length) {
      return { relations: chosen, objects: [...ends].sort((a, b) => a - b) };
    }
    const best = objects.map((_, index) => index).sort((a, b) => objects[b].score - objects[a].score);
    const kept = best.slice(0, state.topK).filter((index) => objects[index].score >= state.minScore);
    return { relations: [], objects: kept };
  }

  /** The scores that the slider stops at: this image's own, so that every step changes something. */
  function stops() {
    const scores = [...new Set(candidates().map((item) => item.score))].sort((a, b) => a - b);
    if (!scores.length || state.minScore > scores.at(-1)) scores.push(state.minScore);
    return scores;
  }

  function showFilters() {
    const items = candidates();
    part("filters").hidden = !items.length;
    const noun = image().relations.length ? "relationship" : "object";
    const most = Math.max(1, ...items.map((item) => item.place));
    for (const input of [part("top"), part("top-number")]) {
      input.max = most;
      input.value = Math.min(state.topK, most);
    }
    const scores = stops();
    const position = scores.findIndex((score) => score >= state.minScore);
    const passing = items.filter((item) => item.score >= state.minScore).length;
    const slider = part("score");
    slider.max = scores.length - 1;
    slider.value = position;
    slider.disabled = scores.length < 2;
    slider.setAttribute("aria-valuetext", `${number(scores[position])}, ${passing} pass`);
    part("score-value").textContent = number(scores[position]);
    part("score-help").textContent =
      `${passing} of ${items.length} pass; a step drops the weakest ${noun}`;
    part("status").textContent = summary();
  }

  function summary() {
    const { objects, relations } = image();
    if (!relations.length) return `${shown.objects.length} of ${counted(objects.length, "object")}`;
    return (
      `${shown.relations.length} of ${counted(relations.length, "relationship")}, ` +
      `${shown.objects.length} of ${counted(objects.length, "object")}`
    );
  }

  // ---- List

  function entity(object) {
    const name = image().objects[object].name;
    return html("span", { class: "entity", "--tone": tone(object) }, name);
  }

  function row(key, place, words, spoken, score, best) {
    const share = best > 0 ? clamp(score / best, 0, 1) : 0;
    return html(
      "li",
      {},
      html(
        "button",
        {
          class: "row",
          type: "button",
          tabindex: -1,
          "data-key": key,
          "aria-label": `${place}: ${spoken}, score ${number(score)}`,
        },
        html("span", { class: "place" }, place),
        html("span", { class: "words" }, ...words),
        html(
          "span",
          { class: "score" },
          number(score),
          html("span", { class: "bar", "--share": `${100 * share}%` }, html("span", {})),
        ),
      ),
    );
  }

  function relationRow(relation, best) {
    const { subject, predicate, object, place, score } = relation;
    const words = [
      entity(subject), " ", html("span", { class: "predicate" }, predicate), " ", entity(object),
    ];
    const spoken = words.map((word) => word.textContent ?? word).join("");
    return row(relationKey(relation), place, words, spoken, score, best);
  }

  function objectRow(object, rank, best) {
    const { name, score } = image().objects[object];
    return row(objectKey(object), rank + 1, [entity(object)], name, score, best);
  }

  function showList() {
    const { objects, relations } = image();
    const listed = relations.length && shown.relations.length;
    part("list-title").textContent = listed ? "Relationships" : "Objects";
    const scores = (listed ? relations : objects).map((item) => item.score);
    const best = Math.max(0, ...scores);
    part("list").replaceChildren(
      ...(listed
        ? shown.relations.map((relation) => relationRow(relation, best))
        : shown.objects.map((object, rank) => objectRow(object, rank, best))),
    );
    part("list").scrollTop = 0;
    part("sentence").textContent = sentence();
    part("sentence").hidden = !part("sentence").textContent;
  }

  function sentence() {
    const { objects, relations } = image();
    if (!objects.length) return "No objects were found in this image.";
    if (shown.relations.length) return "";
    const rest = shown.objects.length
      ? "These are its best objects."
      : "No object has this score.";
    return relations.length
      ? `No relationship passes the filters. ${rest}`
      : `No relationships were found in this image. ${rest}`;
  }

  // ---- Labels that keep out of each other's way

  class Places {
    /** `bounds` {x, y, w, h}: where labels may be. */
    constructor(bounds) {
      this.bounds = bounds;
      this.taken = [];
    }

    take(rectangle) {
      this.taken.push(rectangle);
    }

    /** Takes the first free of `spots`; if there is none, returns the least covered, not taken. */
    place(spots) {
      const costs = spots.map((spot) => this.cost(spot));
      const least = costs.indexOf(Math.min(...costs));
      const covered = costs[least] > 1;
      if (!covered) this.take(spots[least]);
      return { ...spots[least], covered };
    }

    cost(spot) {
      const beyond = spot.w * spot.h - common(spot, this.bounds);
      return this.taken.reduce((sum, other) => sum + common(spot, other), 2 * beyond);
    }
  }

  /** The area that two rectangles have in common. */
  function common(a, b) {
    const w = Math.min(a.x + a.w, b.x + b.w) - Math.max(a.x, b.x);
    const h = Math.min(a.y + a.h, b.y + b.h) - Math.max(a.y, b.y);
    return w > 0 && h > 0 ? w * h : 0;
  }

  function pill(rectangle, text, size) {
    const { x, y, w, h } = rectangle;
    return [
      svg("rect", { class: "pill", x, y, width: w, height: h, rx: size / 3 }),
      svg("text", { class: "name", x: x + w / 2, y: y + h / 2, "font-size": size }, text),
    ];
  }

  function objectGroup(object, className, ...children) {
    const { name, score } = image().objects[object];
    return svg(
      "g",
      {
        class: className,
        "data-key": objectKey(object),
        "--tone": tone(object),
        role: "button",
        tabindex: -1,
        "aria-label": `${name}, object score ${number(score)}`,
      },
      ...children,
    );
  }

  // ---- Image with boxes, in the pixels of the original image

  /** Pixels of a box are inclusive: one from 3 to 3 is one pixel wide. */
  function extent(object) {
    const [x1, y1, x2, y2] = image().objects[object].box;
    return { x: x1, y: y1, w: x2 - x1 + 1, h: y2 - y1 + 1 };
  }

  function labelSpots(box, w, h) {
    const right = box.x + box.w - w;
    const bottom = box.y + box.h;
    const xs = [box.x, right, box.x + (box.w - w) / 2];
    const ys = [box.y - h, bottom, box.y, bottom - h, box.y + (box.h - h) / 2];
    return ys.flatMap((y) => xs.map((x) => ({ x, y, w, h })));
  }

  function showBoxes() {
    const { width, height, objects } = image();
    const unit = width / part("stage").clientWidth; // image pixels in a screen pixel
    const area = (object) => extent(object).w * extent(object).h;
    const smallFirst = [...shown.objects].sort((a, b) => area(a) - area(b));
    // Beside a narrow image there is room, too.
    const beside = (part("stage").parentElement.clientWidth * unit - width) / 2;
    const places = new Places({ x: -beside, y: 0, w: width + 2 * beside, h: height });
    const groups = smallFirst.map((object) => {
      const box = extent(object);
      const name = short(objects[object].name);
      const w = (textWidth(name) + 12) * unit;
      // Small boxes have the fewest good places for a label, so they choose first.
      const label = places.place(labelSpots(box, w, 19 * unit));
      const sides = { x: box.x, y: box.y, width: box.w, height: box.h };
      const outline = objectGroup(
        object,
        "object",
        svg("rect", { class: "halo", ...sides }),
        svg("rect", { class: "outline", ...sides }),
      );
      const tag = svg(
        "g",
        {
          class: `tag${label.covered ? " is-covered" : ""}`,
          "data-key": objectKey(object),
          "--tone": tone(object),
          "aria-hidden": "true",
        },
        ...pill(label, name, FONT_SIZE * unit),
      );
      return { outline, tag };
    });
    const overlay = part("boxes");
    overlay.setAttribute("viewBox", `0 0 ${width} ${height}`);
    // The last is on top: a small box inside a large one can be pointed at.
    groups.reverse();
    const layers = [groups.map(({ outline }) => outline), groups.map(({ tag }) => tag)];
    overlay.replaceChildren(...layers.map((layer) => svg("g", {}, ...layer)));
  }

  // ---- Layout of the graph: where the objects are in the image, moved until it can be read

  /**
   * Positions of nodes in a world that has the shape of the panel and is larger if need be.
   *
   * Deterministic: no chance, no time, always the same number of steps.
   */
  function layout(nodes, links, width, height) {
    const room =
      nodes.reduce((sum, node) => sum + (node.w + 26) * (node.h + 26) * 1.9, 0) +
      links.reduce((sum, link) => sum + link.w * 34, 0);
    const stretch = Math.max(1, Math.sqrt(room / (width * height)));
    const size = { w: width * stretch, h: height * stretch, stretch };
    nodes.forEach((node, index) => {
      // Objects at the same place part in different directions.
      node.x = size.w * (0.12 + 0.76 * node.home.x) + 3 * Math.cos(2.4 * index);
      node.y = size.h * (0.12 + 0.76 * node.home.y) + 3 * Math.sin(2.4 * index);
      node.anchor = { x: node.x, y: node.y };
    });
    const reach = 0.8 * Math.sqrt((size.w * size.h) / Math.max(1, nodes.length));
    const steps = 260;
    for (let step = 0; step < steps; step += 1) {
      const heat = 1 - step / steps;
      // Without arrows to be drawn, nodes can stay where the objects are.
      if (links.length) repel(nodes, reach, heat);
      for (const link of links) pull(nodes[link.from], nodes[link.to], link.w, reach, heat);
      for (const node of nodes) {
        node.x += 0.015 * heat * (node.anchor.x - node.x);
        node.y += 0.015 * heat * (node.anchor.y - node.y);
      }
      for (const link of links) clearWay(nodes, link);
      separate(nodes);
      keepInside(nodes, size);
    }
    spread(nodes, size);
    for (let step = 0; step < 40; step += 1) {
      separate(nodes);
      keepInside(nodes, size);
    }
    return size;
  }

  function repel(nodes, reach, heat) {
    for (let i = 0; i < nodes.length; i += 1) {
      for (let j = 0; j < i; j += 1) {
        const dx = nodes[i].x - nodes[j].x;
        const dy = nodes[i].y - nodes[j].y;
        const distance = Math.max(1, Math.hypot(dx, dy));
        if (distance > 2.5 * reach) continue;
        const push = (0.05 * heat * reach * reach) / (distance * distance);
        const limited = Math.min(push, 12 / distance);
        shift(nodes[i], limited * dx, limited * dy);
        shift(nodes[j], -limited * dx, -limited * dy);
      }
    }
  }

  function shift(node, dx, dy) {
    node.x += dx;
    node.y += dy;
  }

  /** Related nodes are close, but leave room for the name of the predicate. */
  function pull(a, b, labelWidth, reach, heat) {
    if (a === b) return;
    const dx = b.x - a.x;
    const dy = b.y - a.y;
    const distance = Math.max(1, Math.hypot(dx, dy));
    const across = Math.abs(dx) / distance;
    const wanted = across * ((a.w + b.w) / 2 + labelWidth) + (1 - across) * 70 + 20;
    const rest = clamp(wanted, 0.7 * reach, 1.5 * reach);
    const force = (0.08 * heat * (distance - rest)) / distance;
    shift(a, force * dx, force * dy);
    shift(b, -force * dx, -force * dy);
  }

  /** Moves nodes off an arrow that passes over them. */
  function clearWay(nodes, link) {
    const a = nodes[link.from];
    const b = nodes[link.to];
    const dx = b.x - a.x;
    const dy = b.y - a.y;
    const square = dx * dx + dy * dy;
    if (square < 1) return;
    for (const node of nodes) {
      if (node === a || node === b) continue;
      const t = ((node.x - a.x) * dx + (node.y - a.y) * dy) / square;
      if (t < 0.03 || t > 0.97) continue;
      let nx = node.x - a.x - t * dx;
      let ny = node.y - a.y - t * dy;
      let distance = Math.hypot(nx, ny);
      if (distance < 0.5) [nx, ny, distance] = [-dy, dx, Math.hypot(dx, dy)];
      nx /= distance;
      ny /= distance;
      const needed = (Math.abs(nx) * node.w) / 2 + (Math.abs(ny) * node.h) / 2 + 9;
      const missing = needed - Math.abs((node.x - a.x) * nx + (node.y - a.y) * ny);
      if (missing <= 0) continue;
      shift(node, 0.2 * missing * nx, 0.2 * missing * ny);
      shift(a, -0.08 * missing * nx, -0.08 * missing * ny);
      shift(b, -0.08 * missing * nx, -0.08 * missing * ny);
    }
  }

  /** Moves overlapping nodes apart, along the shorter way. */
  function separate(nodes) {
    for (let i = 0; i < nodes.length; i += 1) {
      for (let j = 0; j < i; j += 1) {
        const a = nodes[i];
        const b = nodes[j];
        const dx = a.x - b.x;
        const dy = a.y - b.y;
        const overX = (a.w + b.w) / 2 + 16 - Math.abs(dx);
        const overY = (a.h + b.h) / 2 + 16 - Math.abs(dy);
        if (overX <= 0 || overY <= 0) continue;
        const [x, y] = overX < overY ? [overX * (dx < 0 ? -1 : 1), 0] : [0, overY * (dy < 0 ? -1 : 1)];
        shift(a, x / 2, y / 2);
        shift(b, -x / 2, -y / 2);
      }
    }
  }

  /** On the screen, where nodes are as large in the smallest view, with room for a loop above. */
  function keepInside(nodes, size) {
    for (const node of nodes) {
      const w = (node.w / 2 + 10) * size.stretch;
      const [above, below] = [(node.h / 2 + 34) * size.stretch, (node.h / 2 + 12) * size.stretch];
      node.x = clamp(node.x, w, size.w - w);
      node.y = clamp(node.y, above, size.h - below);
    }
  }

  /** Few nodes use the panel, too, but do not fly to its corners. */
  function spread(nodes, size) {
    for (const [axis, side, margin] of [["x", "w", 10], ["y", "h", 34]]) {
      const low = Math.min(...nodes.map((node) => node[axis] - node[side] / 2));
      const high = Math.max(...nodes.map((node) => node[axis] + node[side] / 2));
      const factor = Math.min(1.35, (size[side] - 2 * margin) / Math.max(1, high - low));
      const middle = (low + high) / 2;
      for (const node of nodes) node[axis] = size[side] / 2 + factor * (node[axis] - middle);
    }
  }

  function arrange() {
    const { width, height, objects } = image();
    const panel = part("canvas");
    const nodes = shown.objects.map((object) => {
      const { x, y, w, h } = extent(object);
      const home = { x: clamp((x + w / 2) / width, 0, 1), y: clamp((y + h / 2) / height, 0, 1) };
      return { object, home, w: textWidth(short(objects[object].name)) + 18, h: PILL_HEIGHT };
    });
    const index = new Map(shown.objects.map((object, position) => [object, position]));
    const links = shown.relations.map((relation) => ({
      relation,
      from: index.get(relation.subject),
      to: index.get(relation.object),
      w: textWidth(short(relation.predicate)) + 10,
    }));
    world = { nodes, links, ...layout(nodes, links, panel.clientWidth, panel.clientHeight) };
    fit();
  }

  // ---- Graph on the screen

  function fit() {
    Object.assign(view, { scale: 1 / world.stretch, x: 0, y: 0 });
    showGraph();
  }

  /** Zooms by a factor, around a point of the panel. */
  function zoom(factor, x, y) {
    const scale = clamp(view.scale * factor, 1 / world.stretch, MAX_ZOOM);
    view.x = x - ((x - view.x) * scale) / view.scale;
    view.y = y - ((y - view.y) * scale) / view.scale;
    view.scale = scale;
    keepInView();
  }

  const isZoomed = () => view.scale > 1.001 / world.stretch;

  function pan(dx, dy) {
    if (!isZoomed()) return; // all is in view already
    view.x += dx;
    view.y += dy;
    keepInView();
  }

  function keepInView() {
    const panel = part("canvas");
    view.x = clamp(view.x, panel.clientWidth - world.w * view.scale, 0);
    view.y = clamp(view.y, panel.clientHeight - world.h * view.scale, 0);
    showGraph();
  }

  /** Draws the graph as it is zoomed; labels keep their size, so that zooming in makes room. */
  function showGraph() {
    const { clientWidth: w, clientHeight: h } = part("canvas");
    const places = new Places({ x: -1e4, y: -1e4, w: 2e4, h: 2e4 });
    const spots = world.nodes.map((node) => {
      const x = node.x * view.scale + view.x;
      const y = node.y * view.scale + view.y;
      const spot = places.place([{ x: x - node.w / 2, y: y - node.h / 2, w: node.w, h: node.h }]);
      const dot = { x: x - 7, y: y - 7, w: 14, h: 14 };
      if (spot.covered) places.take(dot);
      return { object: node.object, x, y, spot, body: spot.covered ? dot : spot };
    });
    const pairs = new Set(world.links.map((link) => `${link.from} ${link.to}`));
    const edges = world.links.map((link) => {
      const curve =
        link.from === link.to
          ? loop(spots[link.from])
          : arrow(spots[link.from], spots[link.to], pairs.has(`${link.to} ${link.from}`));
      return { ...link, ...curve };
    });
    // Labels find their places before anything is drawn: the shortest arrows have the least choice.
    const labels = [...edges].sort((a, b) => a.length - b.length).map((edge) => predicateLabel(edge, places));
    part("network").setAttribute("viewBox", `0 0 ${w} ${h}`);
    part("network").replaceChildren(
      svg("g", {}, ...edges.map(edgeGroup)),
      svg("g", { id: "nodes" }, ...spots.map(nodeGroup).reverse()),
      svg("g", {}, ...labels),
    );
    part("canvas").classList.toggle("is-dense", edges.length > MANY_EDGES);
    part("canvas").classList.toggle("is-zoomed", isZoomed());
    readyToFocus(part("nodes"));
    highlight();
  }

  function nodeGroup({ object, x, y, spot }) {
    const name = short(image().objects[object].name);
    return objectGroup(
      object,
      `object node${spot.covered ? " is-covered" : ""}`,
      svg("circle", { class: "dot", cx: x, cy: y, r: 7 }),
      ...pill(spot, name, FONT_SIZE),
    );
  }

  /** A curve from node to node; one of two between the same nodes bends out of the other's way. */
  function arrow(from, to, both) {
    const dx = to.x - from.x;
    const dy = to.y - from.y;
    const bend = both ? Math.min(0.16, 40 / Math.max(1, Math.hypot(dx, dy))) : 0.04;
    const control = { x: (from.x + to.x) / 2 - bend * dy, y: (from.y + to.y) / 2 + bend * dx };
    const start = leave(from, control, 0);
    const end = leave(to, control, 3);
    const at = (t) => ({
      x: (1 - t) ** 2 * start.x + 2 * t * (1 - t) * control.x + t * t * end.x,
      y: (1 - t) ** 2 * start.y + 2 * t * (1 - t) * control.y + t * t * end.y,
    });
    const path = `M${start.x} ${start.y}Q${control.x} ${control.y} ${end.x} ${end.y}`;
    return { path, at, end, before: control, length: Math.hypot(dx, dy) };
  }

  /** Where the line from the middle of a node to a point leaves the node's body, and a gap. */
  function leave(node, towards, gap) {
    const dx = towards.x - node.x;
    const dy = towards.y - node.y;
    const distance = Math.max(1e-6, Math.hypot(dx, dy));
    const half = { x: node.body.w / 2, y: node.body.h / 2 };
    const share = Math.min(half.x / Math.max(1e-6, Math.abs(dx)), half.y / Math.max(1e-6, Math.abs(dy)));
    const reach = Math.min(share + gap / distance, 0.9);
    return { x: node.x + reach * dx, y: node.y + reach * dy };
  }

  /** What relates a node to itself, above it. */
  function loop({ x, body }) {
    const y = body.y;
    const end = { x: x + 9, y: y - 2 };
    const path = `M${x - 9} ${y}C${x - 26} ${y - 30} ${x + 26} ${y - 30} ${end.x} ${end.y}`;
    return { path, at: () => ({ x, y: y - 25 }), end, before: { x: x + 18, y: y - 18 }, length: 0 };
  }

  function edgeGroup({ relation, path, end, before }) {
    const angle = Math.atan2(end.y - before.y, end.x - before.x);
    const corner = (turn) => `${end.x - 9 * Math.cos(angle + turn)} ${end.y - 9 * Math.sin(angle + turn)}`;
    return svg(
      "g",
      { class: "edge", "data-key": relationKey(relation), "aria-hidden": "true" },
      svg("path", { class: "reach", d: path }),
      svg("path", { d: path }),
      svg("path", { class: "head", d: `M${end.x} ${end.y}L${corner(0.4)}L${corner(-0.4)}Z` }),
    );
  }

  function predicateLabel({ relation, at, w }, places) {
    const h = FONT_SIZE + 4;
    const spots = [0.5, 0.43, 0.57, 0.36, 0.64, 0.29, 0.71].map((t) => {
      const { x, y } = at(t);
      return { x: x - w / 2, y: y - h / 2, w, h };
    });
    const { x, y, covered } = places.place(spots);
    return svg(
      "text",
      {
        class: `predicate-label${covered ? " is-covered" : ""}`,
        "data-key": relationKey(relation),
        "font-size": FONT_SIZE,
        x: x + w / 2,
        y: y + h / 2,
        "aria-hidden": "true",
      },
      short(relation.predicate),
    );
  }

  // ---- Links between image, graph and list

  /** The keys of what belongs to the active thing, and of what is related to that. */
  function related(key) {
    const active = new Set([key]);
    const near = new Set();
    for (const relation of shown.relations) {
      const ends = [relation.subject, relation.object].map(objectKey);
      if (relationKey(relation) === key) ends.forEach((end) => active.add(end));
      if (ends.includes(key)) {
        active.add(relationKey(relation));
        ends.forEach((end) => near.add(end));
      }
    }
    return { active, near };
  }

  function highlight() {
    const key = state.pinned ?? state.hovered;
    const { active, near } = key === null ? { active: new Set(), near: new Set() } : related(key);
    part("main").classList.toggle("has-active", key !== null);
    for (const element of document.querySelectorAll("[data-key]")) {
      const own = element.dataset.key;
      element.classList.toggle("is-active", active.has(own));
      element.classList.toggle("is-near", near.has(own) && !active.has(own));
      if (element.matches("button, [role=button]")) {
        element.setAttribute("aria-pressed", own === state.pinned);
      }
    }
  }

  function hover(key) {
    if (state.hovered === key) return;
    state.hovered = key;
    highlight();
  }

  function pin(key) {
    state.pinned = state.pinned === key ? null : key;
    if (state.pinned === null) state.hovered = null;
    highlight();
    revealRow();
  }

  /** Scrolls the list, never the page, to the first row of what is pinned. */
  function revealRow() {
    const list = part("list");
    const first = state.pinned && list.querySelector(".is-active");
    if (!first || list.scrollHeight <= list.clientHeight) return;
    const top = first.offsetTop - list.offsetTop;
    const hidden = top < list.scrollTop || top + first.offsetHeight > list.scrollTop + list.clientHeight;
    if (hidden) list.scrollTop = top - 8;
  }

  const keyOf = (target) => target.closest?.("[data-key]")?.dataset.key ?? null;

  function linkParts() {
    document.addEventListener("pointerover", (event) => {
      // A finger does not hover; its tap pins.
      if (event.pointerType !== "touch") hover(keyOf(event.target));
    });
    document.addEventListener("pointerleave", () => hover(null));
    document.addEventListener("focusin", (event) => {
      if (!event.target.matches(":focus-visible")) return;
      hover(keyOf(event.target));
    });
    document.addEventListener("focusout", () => hover(null));
    document.addEventListener("click", (event) => {
      const key = keyOf(event.target);
      if (key !== null) pin(key);
      else if (!event.target.closest("input, button, a, label")) pin(null);
    });
    document.addEventListener("focusin", (event) => {
      const group = event.target.closest("#list, #boxes, #nodes");
      if (group) readyToFocus(group, event.target);
    });
    document.addEventListener("keydown", onKey);
  }

  /** The Tab key stops once at a group; from there the arrow keys go on. */
  function readyToFocus(group, current) {
    const items = [...group.querySelectorAll("[tabindex]")];
    items.forEach((item) => item.setAttribute("tabindex", -1));
    (current ?? items[0])?.setAttribute("tabindex", 0);
  }

  function onKey(event) {
    if (event.key === "Escape") {
      pin(null);
      return;
    }
    if (event.target.matches("input") || event.ctrlKey || event.metaKey || event.altKey) return;
    const turn = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (turn) {
      go(state.index + turn);
      event.preventDefault();
      return;
    }
    const group = event.target.closest?.("#list, #boxes, #nodes");
    if (!group) return;
    if (event.target.matches("g") && ["Enter", " "].includes(event.key)) {
      pin(keyOf(event.target));
      event.preventDefault();
      return;
    }
    const items = [...group.querySelectorAll("[tabindex]")];
    const at = items.indexOf(event.target);
    const to = { ArrowUp: at - 1, ArrowDown: at + 1, Home: 0, End: items.length - 1 }[event.key];
    if (to === undefined) return;
    items[clamp(to, 0, items.length - 1)].focus();
    event.preventDefault();
  }

  // ---- Zooming and moving the graph by mouse and fingers

  function listenToPointers() {
    const panel = part("canvas");
    const down = new Map(); // pointers on the panel
    let moved = 0;
    const centre = () => {
      const points = [...down.values()];
      const [a, b] = [points[0], points.at(-1)];
      return { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2, apart: Math.hypot(a.x - b.x, a.y - b.y) };
    };
    const point = (event) => {
      const { left, top } = panel.getBoundingClientRect();
      return { x: event.clientX - left, y: event.clientY - top };
    };
    panel.addEventListener("pointerdown", (event) => {
      if (!down.size) moved = 0;
      down.set(event.pointerId, point(event));
    });
    window.addEventListener("pointermove", (event) => {
      if (!down.has(event.pointerId)) return;
      const before = centre();
      down.set(event.pointerId, point(event));
      const after = centre();
      moved += Math.hypot(after.x - before.x, after.y - before.y);
      if (down.size > 1) zoom(after.apart / Math.max(1, before.apart), after.x, after.y);
      if (moved > 4) pan(after.x - before.x, after.y - before.y);
    });
    for (const name of ["pointerup", "pointercancel"]) {
      window.addEventListener(name, (event) => down.delete(event.pointerId));
    }
    // The end of a drag is no click.
    panel.addEventListener("click", (event) => moved > 4 && event.stopPropagation(), true);
    panel.addEventListener(
      "wheel",
      (event) => {
        if (!event.ctrlKey && !event.metaKey) return; // else the page scrolls
        event.preventDefault();
        const { x, y } = point(event);
        zoom(Math.exp(-0.004 * event.deltaY), x, y);
      },
      { passive: false },
    );
    const middle = (factor) => () => zoom(factor, panel.clientWidth / 2, panel.clientHeight / 2);
    part("zoom-in").addEventListener("click", middle(1.4));
    part("zoom-out").addEventListener("click", middle(1 / 1.4));
    part("zoom-fit").addEventListener("click", fit);
  }

  // ---- Images

  function show(index) {
    state.index = index;
    state.pinned = state.hovered = null;
    const { picture, width, height, objects, line } = image();
    const photo = part("photo");
    photo.src = picture;
    photo.alt = `${line.image}, in which objects are marked`;
    photo.classList.toggle("small", Math.max(width, height) < SMALL_IMAGE);
    part("stage").style.setProperty("--ratio", width / height);
    part("canvas").style.setProperty("--objects", objects.length);
    part("file").textContent = line.image;
    part("size").textContent = `${width} × ${height} px`;
    const link = part("download");
    link.href = `data:application/json;charset=utf-8,${encodeURIComponent(JSON.stringify(line))}`;
    link.download = `${line.image.split(/[\\/]/).pop()}.json`;
    part("count").textContent = `${index + 1} of ${images.length}`;
    part("previous").disabled = index === 0;
    part("next").disabled = index === images.length - 1;
    markThumbnail();
    refresh();
  }

  /** Shows another image, if there is one, and remembers it in the address. */
  function go(index) {
    if (index === state.index || !images[index]) return;
    show(index);
    // A frame's srcdoc has no address to remember anything in.
    if (location.protocol !== "about:") history.replaceState(null, "", `#image=${index + 1}`);
  }

  function imageOfAddress() {
    const asked = Number(/^#image=(\d+)$/.exec(location.hash)?.[1] ?? 1) - 1;
    return images[asked] ? asked : 0;
  }

  function makeStrip() {
    const buttons = images.map(({ thumbnail, line }, index) => {
      const button = html(
        "button",
        { type: "button", title: line.image, "aria-label": `Image ${index + 1}: ${line.image}` },
        html("img", { src: thumbnail, alt: "" }),
      );
      button.addEventListener("click", () => go(index));
      return button;
    });
    part("strip").append(...buttons);
  }

  function markThumbnail() {
    const strip = part("strip");
    [...strip.children].forEach((button, index) => {
      button.setAttribute("aria-current", index === state.index);
      if (index !== state.index) return;
      const left = button.offsetLeft - strip.offsetLeft;
      strip.scrollLeft = left - (strip.clientWidth - button.offsetWidth) / 2;
    });
  }

  // ---- All together

  /** Applies the filters to everything. */
  function refresh() {
    shown = select();
    const keys = [...shown.relations.map(relationKey), ...shown.objects.map(objectKey)];
    if (!keys.includes(state.pinned)) state.pinned = null;
    if (!keys.includes(state.hovered)) state.hovered = null;
    showFilters();
    showList();
    readyToFocus(part("list"));
    draw();
  }

  /** Draws what depends on sizes on the screen. */
  function draw() {
    if (!part("stage").clientWidth || !part("canvas").clientHeight) return; // a hidden frame
    showBoxes();
    readyToFocus(part("boxes"));
    arrange();
  }

  function listenToFilters() {
    part("top").addEventListener("input", (event) => {
      state.topK = event.target.valueAsNumber;
      refresh();
    });
    part("top-number").addEventListener("change", (event) => {
      const wanted = event.target.valueAsNumber;
      if (Number.isFinite(wanted)) state.topK = Math.max(1, Math.round(wanted));
      refresh();
    });
    part("score").addEventListener("input", (event) => {
      state.minScore = stops()[event.target.valueAsNumber];
      refresh();
    });
  }

  function start() {
    part("images").hidden = images.length < 2;
    if (!images.length) {
      part("main").hidden = true;
      part("nothing").hidden = false;
      return;
    }
    if (images.length > 1) makeStrip();
    part("previous").addEventListener("click", () => go(state.index - 1));
    part("next").addEventListener("click", () => go(state.index + 1));
    window.addEventListener("hashchange", () => go(imageOfAddress()));
    linkParts();
    listenToFilters();
    listenToPointers();
    show(imageOfAddress());
    new ResizeObserver(draw).observe(part("canvas"));
  }

  start();
})();
