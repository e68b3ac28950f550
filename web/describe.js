// "Describe with JanusFlow" in the menu of every node that shows or gives a picture: the answer appears beside it.

import { app } from "../../scripts/app.js";

const GAP = 40;
const ROOM_FOR_TEXT = 80; // the field with the answer comes only once there is one

app.registerExtension({
  name: "JanusFlow.Describe",
  setup() {
    app.api.addEventListener("executed", ({ detail }) => showRemembered(detail));
  },
  getNodeMenuItems(node) {
    const picture = pictureOf(node);
    return picture ? [{ content: "Describe with JanusFlow", callback: () => describe(node, picture) }] : [];
  },
});

/** Shows an answer that the server remembers: it sends such as outputs only, not to the field that shows the text. */
function showRemembered({ node: nodeId, output }) {
  const node = app.canvas.graph.getNodeById(String(nodeId).split(":").at(-1)); // behind the subgraphs it lies in
  if (node?.type !== "JanusFlowDescribe" || !output?.text) return;
  app.api.dispatchCustomEvent("progress_text", { nodeId, text: output.text.join("\n\n") });
}

/** The node and the output that a node's picture comes from, if it has one. */
function pictureOf(node) {
  const slot = node.findOutputSlotByType("IMAGE");
  if (slot >= 0 && !passesOn(node)) return { source: node, slot };
  if (slot < 0 && !node.imgs?.length) return undefined;
  const input = node.inputs?.find(({ type, link }) => type === "IMAGE" && link != null);
  const link = input && node.graph.getLink(input.link);
  const source = link && node.graph.getNodeById(link.origin_id); // none where a subgraph gets it from outside
  return source && { source, slot: link.origin_slot };
}

/** Says whether a node's pictures are those it gets, as with PreviewImage and SaveImage. */
function passesOn(node) {
  return node.constructor.nodeData?.output_node && node.findInputSlotByType("IMAGE") >= 0;
}

async function describe(node, picture) {
  const { canvas } = app;
  canvas.emitBeforeChange(); // all that is added is one step of undo
  const asked = picture.source.getOutputNodes(picture.slot) ?? [];
  const describer = asked.find(isActive("JanusFlowDescribe")) ?? addDescriber(node, picture);
  if (!describer.isInputConnected(describer.findInputSlot("clip"))) connectLoader(node, describer);
  canvas.emitAfterChange();
  // A picture whose seed has moved on since is drawn anew: a clicked PreviewImage runs too, so that it shows what is
  // described. The command leaves out nodes that are no outputs, and knows the way into subgraphs.
  canvas.selectItems([node, describer]);
  await app.extensionManager.command.execute("Comfy.QueueSelectedOutputNodes");
  canvas.selectItems([describer]);
}

function addDescriber(node, { source, slot }) {
  const describer = LiteGraph.createNode("JanusFlowDescribe");
  const [width, height] = describer.size;
  describer.setSize([width, height + ROOM_FOR_TEXT]);
  addWhereFree(node.graph, describer, box(node).right + GAP, node.pos[1]);
  source.connect(slot, describer, "image");
  return describer;
}

function connectLoader(node, describer) {
  const loader =
    node.graph.nodes.find(isActive("JanusFlowLoader")) ??
    addWhereFree(node.graph, LiteGraph.createNode("JanusFlowLoader"), node.pos[0], below(node));
  loader.connect(loader.findOutputSlotByType("CLIP"), describer, "clip");
}

/** Not those that are muted or bypassed. */
function isActive(type) {
  return (node) => node.type === type && node.mode === LiteGraph.ALWAYS;
}

/** Puts a node at a place, or as far below it as it takes to cover no other. */
function addWhereFree(graph, node, x, y) {
  const others = [...graph.nodes];
  node.pos = [x, y];
  for (let other; (other = others.find((other) => touch(node, other))); ) node.pos = [x, below(other)];
  graph.add(node);
  return node;
}

function touch(node, other) {
  const [a, b] = [box(node), box(other)];
  const apart = a.right + GAP <= b.left || b.right + GAP <= a.left || a.bottom + GAP <= b.top || b.bottom + GAP <= a.top;
  return !apart;
}

/** Where the next node's position, which is below its title, may be. */
function below(node) {
  return box(node).bottom + GAP + LiteGraph.NODE_TITLE_HEIGHT;
}

function box({ pos: [left, top], size: [width, height] }) {
  return { left, right: left + width, top: top - LiteGraph.NODE_TITLE_HEIGHT, bottom: top + height };
}
