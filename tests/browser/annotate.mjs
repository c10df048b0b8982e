// Ten rows annotated in JupyterLab, by clicks and keys, with a kernel restart in the middle. Run it by: LLMDATA_BROWSER=1 pytest tests/test_annotate.py
// node annotate.mjs URL SHOTS: URL of the notebook in JupyterLab, with its token; SHOTS a folder for screenshots. Prints what was done, as JSON.
import { chromium } from "playwright-core";

const [url, shots] = process.argv.slice(2);
const done = [];  // for each row: what stood in each place, and what was said of it
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM || "/usr/bin/chromium", args: ["--no-sandbox", "--disable-dev-shm-usage"] });
const page = await browser.newPage({ viewport: { width: 1400, height: 1050 } });
const alerts = [], errors = [];
page.on("dialog", dialog => { alerts.push(dialog.message()); dialog.dismiss(); });
page.on("pageerror", error => errors.push(String(error)));
await page.addInitScript(() => { window.ran = 0; window.alert = () => { window.ran += 1; }; });

const root = page.locator(".llmdata-annotate").last();
const command = name => page.evaluate(name => { window.jupyterapp.commands.execute(name); }, name);
const shot = name => page.screenshot({ path: `${shots}/${name}.png` });
const press = async keys => { for (const key of keys) await page.keyboard.press(key); };
const cards = () => root.locator(".llmdata-card:visible");
const places = async () => (await cards().locator(".answer").allInnerTexts()).map(text => text.match(/\[(\w+\.\d)\]/)[1]);
const count = text => root.locator(".said", { hasText: text }).first().waitFor({ timeout: 20000 });
const button = name => root.getByRole("button", { name, exact: true }).locator("visible=true");
const check = (fact, what) => { if (!fact) throw new Error(what); };

async function row(n, said, act) {
  await count(`${n} of 10`);
  await page.waitForTimeout(300);
  done.push({ row: n, places: await places(), ...said });
  await act();
  await count(`${n + 1} of 10`);
}
const clicked = async (place, rating) => cards().nth(place).getByRole("button", { name: String(rating), exact: true }).click();

try {
  await page.goto(url, { timeout: 120000 });
  await page.locator(".jp-Notebook .jp-Cell").first().waitFor({ timeout: 90000 });
  await page.waitForFunction(() => Boolean(window.jupyterapp), null, { timeout: 60000 });
  await page.getByText("| Idle").waitFor({ timeout: 60000 });
  await page.getByRole("button", { name: "No", exact: true }).click({ timeout: 5000 }).catch(() => {});  // Jupyter's news, where it asks
  await command("notebook:run-all-cells");
  await root.waitFor({ timeout: 60000 });
  await page.waitForTimeout(1500);
  await shot("1-first");
  const cells = await page.locator(".jp-Notebook .jp-Cell").count();

  await row(0, { ratings: [4, 2] }, async () => { await clicked(0, 4); await clicked(1, 2); await button("Save, next").click(); });
  await row(1, { ratings: [5, 1] }, () => press(["5", "1", "Enter"]));
  await row(2, { ratings: [3, 4], preference: 1, rationale: "Più chiara. 日本語 عربي" }, async () => {
    await press(["ArrowRight", "4", "3", "j", "k", "j", "p", "r"]);
    await page.waitForFunction(() => document.activeElement.matches(".llmdata-rationale textarea"));
    await page.keyboard.insertText("Più chiara. 日本語 عربي");
    await shot("2-reason");
    await press(["Control+Enter"]);
  });
  await row(3, { ratings: [2, 2], improved: "Meglio: ", of: 1 }, async () => {
    await press(["2", "2", "ArrowLeft", "ArrowRight", "e"]);
    const field = root.locator(".llmdata-improved textarea");
    await field.waitFor();
    await page.waitForFunction(() => document.activeElement.matches(".llmdata-improved textarea"));
    await press(["Control+Home"]);
    await page.keyboard.type("Meglio: ");
    await field.scrollIntoViewIfNeeded();
    await shot("3-improved");
    await press(["Control+Enter"]);
  });
  await row(4, { flag: "unsafe" }, async () => {
    await press(["f"]);
    await page.waitForFunction(() => document.activeElement.matches(".llmdata-flag input"));
    await page.keyboard.type("unsafe");
    await press(["Enter"]);
  });
  await press(["x", "d", "d"]);  // would cut cells of the notebook
  check(await page.locator(".jp-Notebook .jp-Cell").count() === cells, "a key reached the notebook");

  await press(["5"]);  // begun, and not saved
  await page.waitForTimeout(1500);
  const before = await places();
  await shot("4-before-restart");
  await command("kernelmenu:restart");
  await page.locator(".jp-Dialog .jp-mod-accept").click();
  await page.waitForTimeout(3000);
  await page.getByText("| Idle").waitFor({ timeout: 60000 });
  await page.waitForTimeout(1000);
  await command("notebook:run-all-cells");
  await page.waitForTimeout(4000);
  await count("5 of 10");
  check(String(await places()) === String(before), "not the same row, in the same order, after the restart");
  check(await root.locator(".llmdata-card button.mod-info").count() === 1, "the rating that was begun is gone");
  await shot("5-after-restart");
  await root.locator(".prompt").click();  // the keys

  await row(5, { ratings: [5, 3] }, () => press(["3", "Enter"]));
  await count("6 of 10");
  await page.waitForTimeout(500);
  const skipped = await places();
  await press(["s"]);
  await count("1 skipped");
  await press(["u"]);
  await root.locator(".said", { hasText: "Taken back" }).waitFor();
  check(String(await places()) === String(skipped), "undo shows another row");
  await row(6, { ratings: [1, 3] }, () => press(["1", "3", "Enter"]));
  await row(7, { ratings: [null, null], preference: 0 }, async () => { await button("A is best").click(); await button("Save, next").click(); });
  await page.setViewportSize({ width: 700, height: 1050 });
  await page.waitForTimeout(800);
  await shot("6-narrow");
  await page.setViewportSize({ width: 1400, height: 1050 });
  const ninth = { row: 8, places: await places(), ratings: [1, 4] };
  await Promise.all(["1", "3", "ArrowRight", "ArrowRight", "4", "Enter", "2", "t", "5", "Enter"].map(key => page.keyboard.press(key)));  // faster than the kernel
  await root.locator(".done").waitFor();
  done.push(ninth, { row: 9, ratings: [2, 5], preference: "tie" });
  await shot("7-done");
  const seen = [];
  for (let i = 0; i < 10; i++) {
    await press(["b"]);
    await page.waitForTimeout(700);
    seen.push(await root.locator(".text [dir=auto]").first().evaluate(e => getComputedStyle(e).direction));
    await shot(`8-back-${i}`);
  }
  check(seen.includes("rtl"), `no text stands from right to left: ${seen}`);
  check(await root.locator(":is(.prompt, .answer) :is(script, img, a, svg, iframe)").count() === 0, "a model's HTML is in the page");
  const ran = await page.evaluate(() => window.ran);
  console.log(JSON.stringify({ done, alerts, ran, errors }));
} catch (error) {
  await shot("failed");
  console.error(error, JSON.stringify({ done, alerts, errors }));
  process.exitCode = 1;
} finally { await browser.close(); }
