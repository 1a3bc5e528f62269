"use strict";
const form = document.getElementById("try");
const message = document.getElementById("status");
const result = document.getElementById("result");
const link = document.getElementById("download");
const sent = document.getElementById("request");
const file = document.getElementById("file");
const key = document.getElementById("api-key");

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
  for (const input of form.querySelectorAll("[name]")) {
    if (input.type === "checkbox") fields[input.name] = input.checked;
    else if (input.value.trim() === "") continue;
    else if (input.name === "seed") fields.seed = readSeed(input.value.trim());
    else fields[input.name] = input.type === "number" ? Number(input.value) : input.value;
  }
  return fields;
}

// Beside a MIDI file the fields stand in the query. The key is sent and not shown.
function makeRequest() {
  const fields = readFields();
  const [melody] = file.files;
  const query = melody ? `?${new URLSearchParams(fields)}` : "";
  const type = melody ? "audio/midi" : "application/json";
  const body = melody ?? JSON.stringify(fields);
  const authorization = key.value ? { Authorization: `Bearer ${key.value.trim()}` } : {};
  const shown = `POST /generate${query}\nContent-Type: ${type}\n\n${melody ? `(${melody.name}, ${melody.size} bytes)` : body}`;
  return { url: `generate${query}`, options: { method: "POST", headers: { "Content-Type": type, ...authorization }, body }, shown };
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
  const { url, options, shown } = makeRequest();
  sent.textContent = shown;
  sent.hidden = false;
  result.hidden = true;
  message.className = "";
  message.textContent = "Composing …";
  try {
    const response = await fetch(url, options);
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
