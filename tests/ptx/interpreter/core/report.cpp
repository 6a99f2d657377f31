#include "core/report.h"

#include <cstdio>
#include <map>
#include <tuple>

#include "core/warp.h"

namespace ptx {

namespace {

std::vector<Report> found;
std::map<std::tuple<std::string, std::string, int>, size_t> place_of;  // kernel, kind, instruction -> in found

// Return the report of this kind at this place, or null where there is one already; either way it is counted.
Report* first_of(const std::string& kernel, const char* kind, int instruction) {
  const auto [place, is_new] = place_of.try_emplace({kernel, kind, instruction}, found.size());
  if (is_new) found.emplace_back().kind = kind, found.back().kernel = kernel;
  ++found[place->second].count;
  return is_new ? &found.back() : nullptr;
}

}  // namespace

void report(const Warp& warp, const Instruction& instruction, const char* kind, const std::string& detail) {
  Report* made = first_of(warp.block->kernel->name, kind, instruction.index);
  if (!made) return;
  made->instruction = instruction.text;
  made->file = instruction.file;
  made->line = instruction.line;
  made->detail = detail + (detail.empty() ? "" : " ") + "(block " + std::to_string(warp.block->number) + ", warp " +
                 std::to_string(warp.number) + ")";
}

void report(const std::string& kernel, const char* kind, const std::string& detail) {
  if (Report* made = first_of(kernel, kind, -1)) made->detail = detail;
}

std::vector<Report>& reports() { return found; }

void clear_reports() {
  found.clear();
  place_of.clear();
}

std::string hexadecimal(uint64_t value) {
  char text[32];
  snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(value));
  return text;
}

}  // namespace ptx
