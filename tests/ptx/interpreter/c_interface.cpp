// What Python calls, through ctypes. Texts are JSON, and valid until the next call of the same function.
#include <cstdio>
#include <fstream>
#include <sstream>
#include <stdexcept>

#include "core/module.h"
#include "core/options.h"
#include "core/report.h"
#include "isa/opcode.h"
#include "memory/regions.h"
#include "runtime/json.h"
#include "runtime/loaded.h"

using namespace ptx;
#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

int fail(const std::string& message) {
  fprintf(stderr, "ptx interpreter: %s\n", message.c_str());
  return 1;
}

// Decodes the entry; null, with a message, where that is not possible.
Kernel* decoded(Module& module, const std::string& entry) {
  try {
    return kernel_named(module, entry);
  } catch (const std::exception& error) {
    fail(entry + ": " + error.what());
    return nullptr;
  }
}

Module* loaded(int number) {
  const auto& modules = loaded_modules();
  return number >= 0 && size_t(number) < modules.size() ? modules[size_t(number)].get() : nullptr;
}

// Whether it was reached: a branch also when no lane took it.
bool was_executed(const Kernel& kernel, size_t i) {
  const Count& count = kernel.counts[i];
  return count.issued && (count.lanes || kernel.code[i].flow == Flow::branch);
}

}  // namespace

// ---- Modules and memory

// Return the module's number, or -1.
EXPORT int ptxsim_load(const char* name, const char* text) {
  try {
    load(name, text);
    return int(loaded_modules().size()) - 1;
  } catch (const std::exception& error) {
    fail(std::string(name) + ": " + error.what());
    return -1;
  }
}
EXPORT int ptxsim_load_file(const char* path) {
  std::ifstream file(path);
  if (!file) {
    fail(std::string("no file ") + path);
    return -1;
  }
  std::stringstream text;
  text << file.rdbuf();
  return ptxsim_load(path, text.str().c_str());
}
EXPORT void ptxsim_register(uint64_t at, uint64_t bytes, const char* label) { register_region(at, bytes, label); }
EXPORT void ptxsim_unregister(uint64_t at) { unregister_region(at); }

// ---- Launches

// `arguments` points to each parameter's value. Return 0, or 1 where it could not be run.
EXPORT int ptxsim_launch(int module, const char* entry, const uint32_t* grid, const uint32_t* block, uint32_t shared,
                         void** arguments) {
  try {
    Module* from = loaded(module);
    if (!from) return fail("no module " + std::to_string(module));
    return run(*from, entry, {grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]}, shared, arguments) ? 0 : 1;
  } catch (const std::exception& error) {
    return fail(error.what());
  }
}
EXPORT int ptxsim_param_count(int module, const char* entry) {
  const Kernel* kernel = loaded(module) ? decoded(*loaded(module), entry) : nullptr;
  return kernel ? int(kernel->parameters.size()) : -1;
}
EXPORT int ptxsim_param_size(int module, const char* entry, int i) {
  const Kernel* kernel = loaded(module) ? decoded(*loaded(module), entry) : nullptr;
  return kernel && size_t(i) < kernel->parameters.size() ? kernel->parameters[size_t(i)].bytes : -1;
}
// Return 0, or 1 where there is no such option (core/options.h).
EXPORT int ptxsim_set(const char* name, double value) { return set_option(name, value) ? 0 : 1; }

// ---- What was found

EXPORT const char* ptxsim_errors() {
  static std::string text;
  Json json;
  json.open('[');
  for (const Report& found : reports()) {
    const Module* module = module_with(found.kernel);
    json.open('{').key("kind", found.kind).key("kernel", found.kernel).key("inst", found.instruction);
    json.key("detail", found.detail).key("file", module ? module->file(found.file) : "");
    json.key("line", found.line).key("count", found.count).close('}');
  }
  return (text = json.close(']').text()).c_str();
}
EXPORT void ptxsim_clear_errors() { clear_reports(); }

// The launches since the last call
EXPORT const char* ptxsim_launches() {
  static std::string text;
  Json json;
  json.open('[');
  for (const Launched& made : launches())
    json.open('{')
        .key("kernel", made.kernel)
        .key("grid", made.grid)
        .key("block", made.block)
        .key("shared", made.shared)
        .close('}');
  launches().clear();
  return (text = json.close(']').text()).c_str();
}

EXPORT void ptxsim_clear_stats() {
  for (const auto& module : loaded_modules())
    for (auto& [name, kernel] : module->kernels) {
      kernel->counts.assign(kernel->code.size(), {});
      kernel->launches = kernel->blocks = kernel->warps = 0;
    }
}

// Of each kernel that was launched, every instruction that was issued: [pc, class, issued, lanes, requests, sectors,
// ideal sectors, wavefronts, ideal wavefronts, lines of cache, line, file, text]
EXPORT const char* ptxsim_stats() {
  static std::string text;
  Json json;
  json.open('[');
  for (const auto& module : loaded_modules())
    for (const auto& [name, kernel] : module->kernels) {
      if (!kernel->launches) continue;
      json.open('{').key("kernel", name).key("module", module->name).key("launches", kernel->launches);
      json.key("blocks", kernel->blocks).key("warps", kernel->warps).name("code").open('[');
      for (size_t i = 0; i < kernel->code.size(); ++i) {
        const Count& count = kernel->counts[i];
        const Instruction& in = kernel->code[i];
        if (!count.issued) continue;
        json.open('[').value(i).value(kClassNames[int(in.counted)]).value(count.issued).value(count.lanes);
        json.value(count.requests).value(count.sectors).value(count.ideal_sectors).value(count.wavefronts);
        json.value(count.ideal_wavefronts).value(count.lines).value(in.line).value(module->file(in.file));
        json.value(in.text.substr(0, 120)).close(']');
      }
      json.close(']').close('}');
    }
  return (text = json.close(']').text()).c_str();
}

// Of each entry: [name, whether it was launched, instructions, [[pc, line, file, text] of those never executed]]
EXPORT const char* ptxsim_coverage() {
  static std::string text;
  Json json;
  json.open('[');
  for (const auto& module : loaded_modules())
    for (const auto& [name, body] : module->entries) {
      const Kernel* kernel = decoded(*module, name);
      if (!kernel) continue;
      json.open('[').value(name).value(kernel->launches > 0).value(kernel->code.size()).open('[');
      for (size_t i = 0; i < kernel->code.size(); ++i) {
        const Instruction& in = kernel->code[i];
        if (was_executed(*kernel, i)) continue;
        json.open('[').value(i).value(in.line).value(module->file(in.file)).value(in.text.substr(0, 100)).close(']');
      }
      json.close(']').close(']');
    }
  return (text = json.close(']').text()).c_str();
}

// Instructions of all entries that are not implemented, a line each
EXPORT const char* ptxsim_unsupported() {
  static std::string text;
  text.clear();
  for (const auto& module : loaded_modules())
    for (const auto& [name, body] : module->entries) {
      const Kernel* kernel = decoded(*module, name);
      if (!kernel) text += name + ": it cannot be decoded\n";
      if (kernel)
        for (const std::string& instruction : kernel->unsupported) text += name + ": " + instruction + "\n";
    }
  return text.c_str();
}

// ---- Mutation: the text of an entry, and another in its place

EXPORT const char* ptxsim_text(const char* entry) {
  const Module* module = module_with(entry);
  return module ? module->entries.at(entry).c_str() : "";
}
EXPORT int ptxsim_replace(const char* entry, const char* text) {
  Module* module = module_with(entry);
  if (!module) return fail(std::string("no kernel ") + entry);
  module->entries[entry] = text;
  module->kernels.erase(entry);
  return 0;
}

// ---- Beyond the launches

// Names of the opcodes that are implemented, separated by spaces
EXPORT const char* ptxsim_opcodes() {
  static std::string text;
  text.clear();
  for (std::string_view name : opcode_names()) text += (text.empty() ? "" : " ") + std::string(name);
  return text.c_str();
}
