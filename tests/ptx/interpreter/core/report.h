// What a kernel is found to do wrong. Nothing stops at a mistake: it is noted, and the instruction goes on as it can.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace ptx {

struct Warp;
struct Instruction;

struct Report {
  std::string kind, kernel, instruction, detail;
  int file = 0, line = 0;
  uint64_t count = 0;  // reports of one kind and instruction are counted; the first one's detail is kept
};

void report(const Warp& warp, const Instruction& instruction, const char* kind, const std::string& detail);
// Of a launch, outside of an instruction.
void report(const std::string& kernel, const char* kind, const std::string& detail);
std::vector<Report>& reports();
void clear_reports();

std::string hexadecimal(uint64_t value);

}  // namespace ptx
