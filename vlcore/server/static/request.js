// A request as JSON, as a shell command and as a Python program.

const KEY = "VLCORE_API_KEY";

/** The body of a request. */
export function body(model, messages, { maxTokens, temperature }) {
  return {
    model,
    messages,
    max_tokens: maxTokens,
    temperature,
    stream: true,
    stream_options: { include_usage: true },
  };
}

/** A command for the shell. The body comes by a here-document, which needs no quoting at all, and
 * has room for pictures where an argument has not. */
export function asCurl(origin, request, hasKey) {
  const lines = [`curl --no-buffer ${quoted(`${origin}/v1/chat/completions`)}`];
  if (hasKey) lines.push(`--header "Authorization: Bearer $${KEY}"`);
  lines.push("--header 'Content-Type: application/json'", "--data-binary @- <<'JSON'");
  return `${lines.join(" \\\n  ")}\n${JSON.stringify(request, null, 2)}\nJSON\n`;
}

/** A program for the openai package. */
export function asPython(origin, request, hasKey) {
  const key = hasKey ? `os.environ["${KEY}"]` : '"unused"';
  const options = Object.entries(request).map(([name, value]) => {
    return `    ${name}=${literal(value, "    ")},\n`;
  });
  return `${hasKey ? "import os\n\n" : ""}from openai import OpenAI

client = OpenAI(base_url=${JSON.stringify(`${origin}/v1`)}, api_key=${key})
stream = client.chat.completions.create(
${options.join("")})
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
`;
}

/** Shorten data URLs, for reading. */
export function abbreviated(code) {
  return code.replace(/(data:[\w./+-]*;base64,[\w+/]{12})[\w+/=]{24,}/g, "$1… cut for display …");
}

function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

function literal(value, indent) {
  const inner = `${indent}    `;
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value !== "object") return JSON.stringify(value); // Python reads JSON's strings
  const isList = Array.isArray(value);
  const items = Object.entries(value).map(([name, item]) => {
    return `${inner}${isList ? "" : `${JSON.stringify(name)}: `}${literal(item, inner)},\n`;
  });
  return `${isList ? "[" : "{"}\n${items.join("")}${indent}${isList ? "]" : "}"}`;
}
