// PTX ISA, 9.7.9 and 9.7.13: instructions by which lanes of a warp see each other's values.
#include <algorithm>

#include "core/report.h"
#include "isa/convergence.h"
#include "isa/lanes.h"

namespace ptx {

namespace {

enum Shuffle { kUp, kDown, kButterfly, kIndex };

struct Source {
  int lane;
  bool in_range;
};

// PTX ISA, 9.7.9.6: c holds a clamp in its bits 4..0, and in 12..8 a mask that splits the warp into segments.
template <Shuffle mode>
Source source_of(int lane, uint32_t b, uint32_t c) {
  const int amount = int(b & 31), clamp = int(c & 31), segments = int(c >> 8 & 31);
  const int first = lane & segments, limit = first | (clamp & ~segments);
  int source;
  if constexpr (mode == kUp) source = lane - amount;
  if constexpr (mode == kDown) source = lane + amount;
  if constexpr (mode == kButterfly) source = lane ^ amount;
  if constexpr (mode == kIndex) source = first | (amount & ~segments);
  const bool in_range = mode == kUp ? source >= limit : source <= limit;
  return {in_range ? source : lane, in_range};
}

// Sources: a value, b, c, the member mask.
template <Shuffle mode>
void shfl(Warp& warp, const Instruction& in) {
  const uint32_t *a = warp.lanes<uint32_t>(in.s[0]), *b = warp.lanes<uint32_t>(in.s[1]),
                 *c = warp.lanes<uint32_t>(in.s[2]);
  const uint32_t* masks = warp.lanes<uint32_t>(in.s[3]);
  check_converged(warp, in, members_of(warp, in, in.s[3]) & warp.alive);
  alignas(64) uint32_t values[kLanes];
  Mask in_range = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!warp.has(lane)) continue;
    const Source source = source_of<mode>(lane, b[lane], c[lane]);
    if (!(warp.active & masks[lane] & 1u << source.lane))
      report(warp, in, "shfl", "reads an inactive lane or one outside of the member mask");
    values[lane] = a[source.lane];
    in_range |= Mask(source.in_range) << lane;
  }
  if (!in.d[0].sink) write_lanes(warp, in.d[0], values);
  if (in.d.size() > 1) warp.set_predicate(in.d[1], in_range);
}

// The members that take part: threads that have exited are not waited for.
Mask participants(Warp& warp, const Instruction& in, const Operand& mask) {
  const Mask members = members_of(warp, in, mask);
  check_converged(warp, in, members & warp.alive);
  const Mask present = members & warp.active;
  return present ? present : warp.active;
}

void set_all(Warp& warp, const Operand& to, uint32_t value) {
  for (int lane = 0; lane < kLanes; ++lane)
    if (warp.has(lane)) warp.set(to, lane, value);
}

// Sources: a predicate, the member mask.
template <auto decide>
void vote(Warp& warp, const Instruction& in) {
  const Mask members = participants(warp, in, in.s[1]);
  warp.set_predicate(in.d[0], decide(warp.predicate(in.s[0]) & members, members) ? kAllLanes : 0);
}
constexpr auto all_hold = [](Mask holding, Mask members) { return holding == members; };
constexpr auto any_holds = [](Mask holding, Mask) { return holding != 0; };
constexpr auto are_uniform = [](Mask holding, Mask members) { return holding == 0 || holding == members; };

void ballot(Warp& warp, const Instruction& in) {
  const Mask members = participants(warp, in, in.s[1]);
  set_all(warp, in.d[0], warp.predicate(in.s[0]) & members);
}

void active_mask(Warp& warp, const Instruction& in) { set_all(warp, in.d[0], warp.active); }

// Which member is elected is unspecified: the first.
void elect(Warp& warp, const Instruction& in) {
  const Mask members = participants(warp, in, in.s[0]);
  const int leader = std::countr_zero(members);
  set_all(warp, in.d[0], uint32_t(leader));
  warp.set_predicate(in.d[1], 1u << leader);
}

template <class T, auto combine>
void redux(Warp& warp, const Instruction& in) {
  const T* a = warp.lanes<T>(in.s[0]);
  const Mask members = participants(warp, in, in.s[1]);
  T total = a[std::countr_zero(members)];
  for (int lane = std::countr_zero(members) + 1; lane < kLanes; ++lane)
    if (members >> lane & 1) total = T(combine(total, a[lane]));
  set_all(warp, in.d[0], uint32_t(total));
}
constexpr auto sum = [](auto a, auto b) { return uint32_t(a) + uint32_t(b); };
constexpr auto lesser = [](auto a, auto b) { return std::min(a, b); };
constexpr auto greater = [](auto a, auto b) { return std::max(a, b); };
constexpr auto conjunction = [](auto a, auto b) { return a & b; };
constexpr auto disjunction = [](auto a, auto b) { return a | b; };
constexpr auto exclusive = [](auto a, auto b) { return a ^ b; };

Execute reduce(const Form& form, Instruction& in) {
  if (form.has("add")) return redux<uint32_t, sum>;
  if (form.has("min")) return is_signed(in.type) ? redux<int32_t, lesser> : redux<uint32_t, lesser>;
  if (form.has("max")) return is_signed(in.type) ? redux<int32_t, greater> : redux<uint32_t, greater>;
  if (form.has("and")) return redux<uint32_t, conjunction>;
  return form.has("or") ? redux<uint32_t, disjunction> : redux<uint32_t, exclusive>;
}

template <class T>
void match_any(Warp& warp, const Instruction& in) {
  const T* a = warp.lanes<T>(in.s[0]);
  const Mask members = participants(warp, in, in.s[1]);
  for (int lane = 0; lane < kLanes; ++lane) {
    Mask same = 0;
    for (int other = 0; other < kLanes; ++other)
      if (members >> other & 1) same |= Mask(a[other] == a[lane]) << other;
    if (warp.has(lane)) warp.set(in.d[0], lane, same);
  }
}

template <Execute execute>
Execute always(const Form&, Instruction&) {
  return execute;
}

constexpr Opcode kOpcodes[] = {
    {"shfl", "sync up b32", "d4 s4 s4 s4 s4", Class::shfl, always<shfl<kUp>>},
    {"shfl", "sync down b32", "d4 s4 s4 s4 s4", Class::shfl, always<shfl<kDown>>},
    {"shfl", "sync bfly b32", "d4 s4 s4 s4 s4", Class::shfl, always<shfl<kButterfly>>},
    {"shfl", "sync idx b32", "d4 s4 s4 s4 s4", Class::shfl, always<shfl<kIndex>>},
    {"vote", "sync all pred", "dp sp s4", Class::shfl, always<vote<all_hold>>},
    {"vote", "sync any pred", "dp sp s4", Class::shfl, always<vote<any_holds>>},
    {"vote", "sync uni pred", "dp sp s4", Class::shfl, always<vote<are_uniform>>},
    {"vote", "sync ballot b32", "d4 sp s4", Class::shfl, always<ballot>},
    {"activemask", "b32", "d4", Class::other, always<active_mask>},
    {"elect", "sync", "d4 s4", Class::shfl,
     [](const Form&, Instruction& in) { return in.d.size() == 2 ? Execute(elect) : nullptr; }},
    {"redux", "sync add|min|max u32|s32", "d4 s4 s4", Class::shfl, reduce},
    {"redux", "sync and|or|xor b32", "d4 s4 s4", Class::shfl, reduce},
    {"match", "any sync b32", "d4 s4 s4", Class::shfl, always<match_any<uint32_t>>},
    {"match", "any sync b64", "d4 s8 s4", Class::shfl, always<match_any<uint64_t>>},
};

}  // namespace

std::span<const Opcode> warp_communication() { return kOpcodes; }

}  // namespace ptx
