"use strict";
const form = document.getElementById("try");
const message = document.getElementById("status");
const result = document.getElementById("result");
const link = document.getElementById("download");
const sent = document.getElementById("request");

// 42 is a random seed, JSON is taken as it is, anything else is a list of note names.
function readSeed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text.split(/[\s,]+/).filter(Boolean);
  }
}

function readFields() {
  const fields = {};
  for (const input of form.querySelectorAll("input, select")) {
    if (input.type === "checkbox") fields[input.name] = input.checked;
    else if (input.value.trim() === "") continue;
    else if (input.name === "seed") fields.seed = readSeed(input.value.trim());
    else fields[input.name] = input.type === "number" ? Number(input.value) : input.value;
  }
  return fields;
}

// Suggestions from what the model knows; without them a field takes any text all the same.
async function suggest() {
  const { models } = await (await fetch("models")).json();
  for (const list of form.querySelectorAll("datalist")) {
    list.append(...models[0][list.id].map((name) => new Option(name, name)));
  }
}
suggest().catch(() => {});

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const body = JSON.stringify(readFields());
  sent.textContent = `POST /generate\nContent-Type: application/json\n\n${body}`;
  sent.hidden = false;
  result.hidden = true;
  message.className = "";
  message.textContent = "Composing …";
  try {
    const response = await fetch("generate", { method: "POST", headers: { "Content-Type": "application/json" }, body });
    if (!response.ok) {
      const problem = await response.json();
      message.className = "error";
      message.textContent = [problem.title, ...(problem.errors.length ? problem.errors.map((e) => e.detail) : [problem.detail])].join("\n");
      return;
    }
    const seed = response.headers.get("Nocturne-Seed");
    const ended = response.headers.get("Nocturne-Ended") === "true" ? ", to its end" : "";
    message.textContent = `${response.headers.get("Nocturne-Notes")} notes composed${ended}, random seed ${seed}.`;
    URL.revokeObjectURL(link.href);
    link.href = URL.createObjectURL(await response.blob());
    link.download = `nocturne-${seed}.mid`;
    result.hidden = false;
  } catch (error) {
    message.className = "error";
    message.textContent = `The service did not answer: ${error.message}`;
  }
});
