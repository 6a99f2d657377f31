#include "core/types.h"

#include <array>
#include <utility>

#include "core/program.h"

namespace ptx {

namespace {

struct Named {
  std::string_view name;
  Type type;
  int bytes;
};
constexpr Named kTypes[] = {
    {"pred", Type::pred, 0},   {"b8", Type::b8, 1},         {"u8", Type::u8, 1},     {"s8", Type::s8, 1},
    {"b16", Type::b16, 2},     {"u16", Type::u16, 2},       {"s16", Type::s16, 2},   {"b32", Type::b32, 4},
    {"u32", Type::u32, 4},     {"s32", Type::s32, 4},       {"b64", Type::b64, 8},   {"u64", Type::u64, 8},
    {"s64", Type::s64, 8},     {"b128", Type::b128, 16},    {"f16", Type::f16, 2},   {"bf16", Type::bf16, 2},
    {"f16x2", Type::f16x2, 4}, {"bf16x2", Type::bf16x2, 4}, {"tf32", Type::tf32, 4}, {"f32", Type::f32, 4},
    {"f32x2", Type::f32x2, 8}, {"f64", Type::f64, 8},
};

}  // namespace

Type type_named(std::string_view name) {
  for (const Named& named : kTypes)
    if (named.name == name) return named.type;
  return Type::none;
}

int bytes_of(Type type) {
  for (const Named& named : kTypes)
    if (named.type == type) return named.bytes;
  return 0;
}

const char* const kClassNames[int(Class::count)] = {
    "fp32", "int", "int64", "idiv", "mufu", "cvt",  "pred", "mov",      "param",  "ldg",     "stg",  "red",
    "lds",  "sts", "mma",   "movm", "shfl", "ldsm", "bar",  "warpsync", "branch", "cpasync", "other"};

std::string Module::file(int number) const {
  const auto found = files.find(number);
  return found == files.end() ? "" : found->second;
}

}  // namespace ptx
