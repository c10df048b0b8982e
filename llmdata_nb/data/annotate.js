(() => {
const names = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, ArrowLeft: "left", k: "left", ArrowRight: "right", j: "right", p: "p", t: "t", e: "e", Enter: "save", s: "skip", u: "undo", b: "back", n: "next"};
const fields = {r: ".llmdata-rationale textarea", f: ".llmdata-flag input", e: ".llmdata-improved textarea"};
const queues = new WeakMap();
const rootOf = event => event.target.closest && event.target.closest(".llmdata-annotate");
const typing = target => target.matches("textarea, input, select"), texting = target => target.matches("textarea, input");
const pause = time => new Promise(done => setTimeout(done, time));
const answered = root => root.querySelector(".llmdata-ack").textContent;
function later(root, act) {  // one message to the kernel after the other, each when the last is answered: it may take two in another order
  queues.set(root, (queues.get(root) || Promise.resolve()).then(async () => {
    const before = answered(root);
    if (act() !== false) for (let i = 0; i < 500 && answered(root) === before; i++) await pause(10);
    await pause(20);  // for the fields of a new row
    if (document.activeElement === document.body) home(root);  // the field with the focus is gone
  }).catch(console.error));
}
function send(root, field) {
  later(root, () => {
    if (field.value === field.was) return false;
    field.was = field.value;
    field.dispatchEvent(new Event("change", {bubbles: true}));
  });
}
async function enter(root, field, now) {  // the field may only come once the kernel has answered; till then, no letter of the text is taken for a key
  const found = () => [...root.querySelectorAll(field)].find(f => f.offsetParent);
  if (now && found()) return found().focus();
  root.waiting = true;
  await queues.get(root);
  for (let i = 0; i < 100 && !found(); i++) await pause(20);
  root.waiting = false;
  if (found()) found().focus();
}
function home(root) { root.tabIndex = 0; root.focus({preventScroll: true}); }
function keydown(event) {
  const root = rootOf(event), command = event.ctrlKey || event.metaKey;
  if (!root || event.isComposing || event.altKey || (command && event.key !== "Enter")) return;
  event.stopImmediatePropagation();  // no key meant for the rows reaches the notebook, where x cuts a cell
  if (typing(event.target)) {
    if (event.key === "Escape") return home(root);
    if (event.key !== "Enter" || !(command || event.target.closest(".llmdata-flag"))) return;
    home(root);  // which sends the text first
  }
  if (event.target.tagName === "BUTTON" && (event.key === "Enter" || event.key === " ")) return;
  const name = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (!(name in names) && !(name in fields)) return;
  event.preventDefault();
  if (root.waiting) return;
  if (name in names) later(root, () => root.querySelector(".llmdata-key-" + names[name]).click());
  if (["save", "skip", "undo", "back", "next"].includes(names[name])) {
    const moving = root.moving = queues.get(root);
    moving.then(() => { if (root.moving === moving) root.moving = null; });
  }
  if (name in fields) enter(root, fields[name], name !== "e" && !root.moving);
}
function click(event) {
  const root = rootOf(event), button = root && event.target.closest("button");
  if (!root || !event.isTrusted || typing(event.target)) return;
  if (button) { event.stopImmediatePropagation(); later(root, () => button.click()); }
  if (button || String(getSelection()) === "") home(root);
}
function focusin(event) { if (rootOf(event) && texting(event.target) && event.target.was === undefined) event.target.was = event.target.value; }
function change(event) {
  if (!rootOf(event) || !event.isTrusted || !texting(event.target)) return;
  event.stopImmediatePropagation();
  send(rootOf(event), event.target);
}
let timer;
function input(event) {  // send a text a second after the last letter, not only when its field is left
  if (!rootOf(event) || !texting(event.target)) return;
  clearTimeout(timer);
  timer = setTimeout(send, 1000, rootOf(event), event.target);
}
for (const listener of [keydown, click, focusin, change, input]) {
  const name = listener.name, was = "llmdata_" + name;
  if (window[was]) window.removeEventListener(name, window[was], true);
  window.addEventListener(name, window[was] = listener, true);
}
})()
