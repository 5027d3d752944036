// node drive_page.cjs TASK: opens the page in Chromium, drops files on it, and prints what it shows as JSON.
const fs = require("fs");
const path = require("path");
const { chromium } = require("playwright-core");

const QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync"];

async function drop(page, file) {
  const transfer = await page.evaluateHandle(([name, text]) => {
    const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], name));
    document.getElementById("status").textContent = "";
    return transfer;
  }, [path.basename(file), fs.readFileSync(file).toString("base64")]);
  await page.dispatchEvent("#drop", "drop", { dataTransfer: transfer });
  return settle(page);
}

async function settle(page) {
  await page.waitForFunction(() => !/^$|…$/.test(document.getElementById("status").textContent));
  return page.evaluate(() => ({
    status: document.getElementById("status").textContent,
    rows: Array.from(document.querySelectorAll("#results li"),
      (row) => [row.firstChild.data, row.querySelector("progress")?.value ?? null]),
  }));
}

(async () => {
  const { url, files, executable, screenshot } = JSON.parse(fs.readFileSync(process.argv[2], "utf8"));
  const browser = await chromium.launch({ executablePath: executable, args: QUIET });
  const page = await browser.newPage({ viewport: { width: 960, height: 640 } });
  const trouble = [], requests = [];
  page.on("console", (message) => { if (message.type() === "error") trouble.push(message.text()); });
  page.on("pageerror", (error) => trouble.push(String(error)));
  page.on("request", (request) => requests.push(`${request.method()} ${request.url()}`));
  await page.goto(url);
  const shown = [await settle(page)];
  for (const file of files) shown.push(await drop(page, file));
  if (screenshot) await page.screenshot({ path: screenshot });
  await browser.close();
  console.log(JSON.stringify({ shown, trouble, requests }));
})();
