// What is wrong with how a graph looks, as lists of sentences; runs in the editor.
() => {
  const { canvas, graph } = window.app;
  const TITLE = 30, SHRINK = 4, EDGE = 3, OWN = 16; // SHRINK: graph pixels in one of the drawing that is looked at
  const vue = Boolean(document.querySelector("[data-node-id]"));

  function box(node) {
    const [[x, y], [width, height]] = [node.pos, node.size];
    if (!vue) return { left: x, top: y - TITLE, right: x + width, bottom: y + height };
    const { scale, offset } = canvas.ds;
    const area = canvas.canvas.getBoundingClientRect();
    const seen = document.querySelector(`[data-node-id="${node.id}"]`).getBoundingClientRect();
    const [left, top] = [(seen.left - area.left) / scale - offset[0], (seen.top - area.top) / scale - offset[1]];
    return { left, top, right: left + seen.width / scale, bottom: top + seen.height / scale };
  }

  const boxes = graph._nodes.map((node) => ({ node, name: `${node.id} ${node.title}`, ...box(node) }));
  const overlap = boxes.flatMap((a, i) =>
    boxes
      .slice(i + 1)
      .filter((b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom)
      .map((b) => `${a.name} and ${b.name} overlap`),
  );
  const outside = boxes
    .filter((a) => !graph._groups.some(({ _bounding: [x, y, width, height] }) =>
      a.left > x && a.top > y && a.right < x + width && a.bottom < y + height))
    .map((a) => `${a.name} is in no group`);

  const [x0, y0] = [Math.min(...boxes.map((a) => a.left)) - 500, Math.min(...boxes.map((a) => a.top)) - 500];
  const size = [Math.max(...boxes.map((a) => a.right)) - x0, Math.max(...boxes.map((a) => a.bottom)) - y0];
  const drawing = new OffscreenCanvas(...size.map((side) => side / SHRINK)).getContext("2d", { willReadFrequently: true });
  drawing.setTransform(1 / SHRINK, 0, 0, 1 / SHRINK, -x0 / SHRINK, -y0 / SHRINK);
  drawing.lineWidth = SHRINK;

  function covers(a, edge) {
    const [left, top] = [(a.left + edge - x0) / SHRINK, (a.top + EDGE - y0) / SHRINK];
    const [width, height] = [(a.right - a.left - 2 * edge) / SHRINK, (a.bottom - a.top - 2 * EDGE) / SHRINK];
    return drawing.getImageData(left, top, width, height).data.some(Boolean);
  }

  const hidden = [];
  let drawn = 0;
  for (const link of graph.links.values()) {
    drawing.clearRect(x0, y0, ...size);
    const reroutes = [];
    for (let id = link.parentId; id != null; id = reroutes.at(-1).parentId) reroutes.push(graph.reroutes.get(id));
    for (const { path } of [link, ...reroutes].filter(({ path }) => path)) drawing.stroke(path), drawn++;
    const own = (a) => a.node.id == link.origin_id || a.node.id == link.target_id;
    for (const a of boxes.filter((a) => covers(a, own(a) ? OWN : EDGE)))
      hidden.push(`the wire ${link.type} from ${link.origin_id} to ${link.target_id} runs behind ${a.name}`);
  }
  if (drawn < graph.links.size) hidden.push(`only ${drawn} of ${graph.links.size} wires are drawn`);
  return [...overlap, ...outside, ...hidden];
}
