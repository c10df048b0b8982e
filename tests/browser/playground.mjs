// The playground in JupyterLab: run, stop, open, edit, save; then a run of all rows with its progress line, interrupted once. Run it by: LLMDATA_BROWSER=1 pytest tests/test_playground.py
// node playground.mjs URL SHOTS: URL of the notebook in JupyterLab, with its token; SHOTS a folder for screenshots. Prints what was seen, as JSON.
import { chromium } from "playwright-core";

const [url, shots] = process.argv.slice(2);
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM || "/usr/bin/chromium", args: ["--no-sandbox", "--disable-dev-shm-usage"] });
const page = await browser.newPage({ viewport: { width: 1400, height: 1050 } });
const alerts = [], errors = [];
page.on("dialog", dialog => { alerts.push(dialog.message()); dialog.dismiss(); });
page.on("pageerror", error => errors.push(String(error)));
await page.addInitScript(() => { window.ran = 0; window.alert = () => { window.ran += 1; }; });

const root = page.locator(".llmdata-playground").last();
const command = (name, args) => page.evaluate(([name, args]) => { window.jupyterapp.commands.execute(name, args); }, [name, args]);
const shot = name => page.screenshot({ path: `${shots}/playground-${name}.png` });
const button = name => root.getByRole("button", { name, exact: true });
const check = (fact, what) => { if (!fact) throw new Error(what); };
const said = text => root.getByRole("status").getByText(text).waitFor({ timeout: 120000 });
const lines = root.locator("details");
const idle = () => page.getByText("| Idle").waitFor({ timeout: 120000 });

try {
  await page.goto(url, { timeout: 90000 });
  await page.locator(".jp-Notebook .jp-Cell").first().waitFor({ timeout: 90000 });
  await page.waitForFunction(() => Boolean(window.jupyterapp), null, { timeout: 120000 });
  await idle();
  await page.getByRole("button", { name: "No", exact: true }).click({ timeout: 5000 }).catch(() => {});  // Jupyter's news, where it asks
  await page.locator(".jp-Notebook .jp-Cell").first().click();
  for (let i = 0; i < 2; i++) await command("notebook:run-cell-and-select-next");
  await root.waitFor({ timeout: 120000 });
  await idle();
  const cells = await page.locator(".jp-Notebook .jp-Cell").count();

  await button("Run").click();  // and stop, while answers are awaited that do not come
  await lines.nth(5).waitFor({ timeout: 120000 });
  await idle();  // the kernel is free meanwhile
  await button("Stop").click();
  await said(/^Stopped/);
  check(await root.getByText("stopped", { exact: true }).count() > 0, "no call is marked as stopped");

  await button("Run").click();
  await root.getByText("stopped", { exact: true }).first().waitFor({ state: "detached", timeout: 120000 });
  await lines.first().waitFor({ timeout: 120000 });
  await lines.first().locator("summary").focus();  // opened by keyboard, while the others come
  await page.keyboard.press("Enter");
  await page.keyboard.press("x"), await page.keyboard.press("d"), await page.keyboard.press("d");  // would cut cells of the notebook
  await said(/^Done/);
  check(await lines.first().evaluate(d => d.open), "the line that was opened has closed");
  check(await page.locator(".jp-Notebook .jp-Cell").count() === cells, "a key reached the notebook");
  check(await root.locator(".chip.good").count() === 3, "not every row was kept");
  check(await lines.count() === 15, `${await lines.count()} lines of calls and ends`);
  check((await lines.first().innerText()).includes("Number 0"), "the prompt is not shown");
  const directions = await root.locator(".row [dir=auto]").evaluateAll(all => all.map(e => getComputedStyle(e).direction));
  check(directions.includes("rtl") && directions.includes("ltr"), `directions: ${directions}`);
  await page.waitForTimeout(300);
  await shot("1-done");
  await command("apputils:change-theme", { theme: "JupyterLab Dark" });
  await page.waitForTimeout(1500);
  await shot("2-dark");
  await command("apputils:change-theme", { theme: "JupyterLab Light" });

  await root.locator(".llmdata-prompts select").selectOption({ label: "response.task" });
  const area = root.locator(".llmdata-prompts textarea");
  await page.waitForFunction(() => document.querySelector(".llmdata-prompts textarea").value.includes("Valuta"));
  await area.focus();
  await page.keyboard.press("Control+a");
  await page.keyboard.type("Sii SEVERO: vota da 1 a 5.");
  await page.keyboard.press("Control+Enter");
  await root.locator(".chip.warn", { hasText: "changed" }).nth(2).waitFor({ timeout: 120000 });
  await said(/^Done/);
  check(await root.locator(".row .chip.warn").count() === 3, "the edited prompt drops no row");
  check(await lines.filter({ hasText: "replayed" }).count() === 9, "what was not edited is not replayed");
  await root.locator("summary", { hasText: "changed" }).first().click();
  await page.waitForTimeout(300);
  await shot("3-edited");
  await page.setViewportSize({ width: 700, height: 1050 });
  await page.waitForTimeout(800);
  await shot("4-narrow");
  await page.setViewportSize({ width: 1400, height: 1050 });
  await button("Save").click();
  await said(/^Saved 1/);
  check(await root.locator(":is(script, img, a, svg, iframe)").count() === 0, "a model's HTML is in the page");

  const last = page.locator(".jp-Notebook .jp-Cell").nth(2), output = last.locator(".jp-OutputArea-output"), seen = [];
  const text = async () => (await output.allInnerTexts()).join("\n").trim();
  const watch = async over => {
    for (let i = 0; i < 600; i++) {
      const now = await text();
      if (now && seen.at(-1) !== now) seen.push(now);
      if (over(now)) return now;
      await page.waitForTimeout(100);
    }
    throw new Error(`the progress: ${seen.join(" | ")}`);
  };
  await last.scrollIntoViewIfNeeded();
  await last.click();
  await command("notebook:run-cell");
  await watch(now => /[1-9]\d*\/40 rows/.test(now));
  await shot("5-progress");
  await command("notebook:interrupt-kernel");
  const stopped = await watch(now => now.includes("KeyboardInterrupt"));
  await idle();
  seen.length = 0;
  await command("notebook:run-cell");
  await watch(now => !now.includes("KeyboardInterrupt"));
  seen.length = 0;
  const outcome = await watch(now => now.includes("rows in"));
  await shot("6-outcome");
  console.log(JSON.stringify({ alerts, errors, ran: await page.evaluate(() => window.ran), stopped, outcome, lines: [...new Set(seen.map(t => t.split("\n")[0]))] }));
} catch (error) {
  await shot("failed");
  console.error(error, JSON.stringify({ alerts, errors }));
  process.exitCode = 1;
} finally { await browser.close(); }
