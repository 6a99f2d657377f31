// A module as it is loaded, and a kernel as it is decoded.
#pragma once
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/special_registers.h"
#include "core/types.h"

namespace ptx {

struct Warp;
struct Instruction;
using Execute = void (*)(Warp&, const Instruction&);

// What an instruction is counted as: roughly the pipeline that executes it.
enum class Class : uint8_t {
  fp32,
  integer,
  int64,
  idiv,
  mufu,
  cvt,
  pred,
  mov,
  param,
  ldg,
  stg,
  red,
  lds,
  sts,
  mma,
  movm,
  shfl,
  ldsm,
  bar,
  warpsync,
  branch,
  cpasync,
  other,
  count
};
extern const char* const kClassNames[int(Class::count)];

enum class Flow : uint8_t { next, branch, exit, barrier };

// A register, by its place in the register file of a warp: 32 values of `bytes` each, or for a predicate (0 bytes) one
// word with a bit per lane. Constants are registers that are never written.
struct Operand {
  uint32_t at = 0;
  uint8_t bytes = 0;
  bool negated = false;  // !%p
  bool sink = false;     // `_`: the result is dropped
};

struct Instruction {
  Execute execute = nullptr;
  Flow flow = Flow::next;
  Class counted = Class::other;
  bool guarded = false;
  Operand guard;
  std::vector<Operand> d, s;      // destinations and sources, vectors as several
  int64_t offset[2] = {0, 0};     // of the first and the second address among the sources
  std::vector<int64_t> literals;  // operands that have to be literals
  int target = -1;                // of a branch, an index into the kernel's code
  Space space = Space::generic;   // of an access
  bool read_only = false;         // ld.global.nc
  uint8_t element_bytes = 4, vector = 1;
  Type type = Type::none, from = Type::none;
  int variant = 0;          // which of an opcode's operations it is, see each chapter of isa/
  int m = 0, n = 0, k = 0;  // shape of matrices
  int file = 0, line = 0, index = 0;
  std::string text;
  // The extent of global memory that the last access fell into: the next is likely to do so, too.
  mutable uint64_t extent_begin = 1, extent_end = 0;
  mutable int extent = -1;
};

// What an instruction did in all launches since the counts were cleared.
struct Count {
  uint64_t issued = 0, lanes = 0;                      // by warps; active lanes in all
  uint64_t requests = 0;                               // accesses with an active lane
  uint64_t sectors = 0, ideal_sectors = 0, lines = 0;  // global: of 32 bytes; cache lines of 128 bytes
  uint64_t wavefronts = 0, ideal_wavefronts = 0;       // shared: with bank conflicts and without
};

struct Parameter {
  std::string name;
  int offset = 0, bytes = 0;
};

struct Kernel {
  std::string name, module;
  int target = 80;  // sm_80
  std::vector<Instruction> code;
  std::vector<int> join;  // of a branch: the index where its paths meet again, -1 where they meet at the exit only
  std::vector<uint8_t> constants;                              // the first bytes of the register file
  uint32_t register_bytes = 0;                                 // of the register file of a warp, constants included
  std::vector<std::pair<uint32_t, SpecialRegister>> specials;  // where special registers lie in the register file
  std::vector<Parameter> parameters;
  int parameter_bytes = 0;
  uint32_t static_shared = 0;
  uint32_t max_threads = 0;  // .maxntid or .reqntid; 0 where neither is given
  bool exact_threads = false;
  std::vector<std::string> unsupported;  // instructions that are reported when they are executed

  std::vector<Count> counts;  // per instruction
  uint64_t launches = 0, blocks = 0, warps = 0;
};

struct Variable {
  Space space = Space::generic;
  std::string name;
  int alignment = 1;
  uint64_t bytes = 0;
  bool is_extern = false;
  std::vector<uint8_t> initial;
};

struct Module {
  std::string name;
  int target = 80;
  std::map<std::string, std::string> entries;  // text, from .entry to the closing brace
  std::vector<Variable> variables;
  std::map<std::string, std::unique_ptr<uint8_t[]>> memory;  // of global and constant variables
  std::map<int, std::string> files;                          // of .file
  std::map<std::string, std::unique_ptr<Kernel>> kernels;    // that were decoded

  std::string file(int number) const;
};

}  // namespace ptx
