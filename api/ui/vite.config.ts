import vue from "@vitejs/plugin-vue";
import { defineConfig } from "vitest/config";

// `npm run dev` shows a server that runs on port 8000.
const server = { target: "http://127.0.0.1:8000", ws: true };

export default defineConfig(({ command }) => ({
  base: command === "serve" ? "/ui/" : "./", // relative, so that it works behind any prefix
  plugins: [vue()],
  build: { target: "es2022", modulePreload: { polyfill: false }, assetsInlineLimit: 0, reportCompressedSize: false },
  server: { proxy: { "/ui/server": server, "^/(?!ui/)": server } },
  test: { environment: "happy-dom", include: ["tests/**/*.test.ts"] },
}));
