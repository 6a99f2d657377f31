#include "core/control_flow.h"

#include <algorithm>

namespace ptx {

std::vector<int> successors(const Kernel& kernel, int index) {
  const Instruction& instruction = kernel.code[index];
  std::vector<int> after;
  if (instruction.flow == Flow::branch) after.push_back(instruction.target);
  if (instruction.flow == Flow::exit) after.push_back(int(kernel.code.size()));
  const bool always = instruction.flow == Flow::branch || instruction.flow == Flow::exit;
  if (!always || instruction.guarded) after.push_back(index + 1);
  return after;
}

namespace {

// Basic blocks, and one more for the exit.
struct Graph {
  std::vector<int> first;     // instruction of a block
  std::vector<int> block_of;  // an instruction
  std::vector<std::vector<int>> successors, predecessors;
  int exit = 0;

  explicit Graph(const Kernel& kernel) {
    const int size = int(kernel.code.size());
    std::vector<char> begins(size + 1, 0);
    begins[0] = 1;
    for (int i = 0; i < size; ++i) {
      const Flow flow = kernel.code[i].flow;
      if (flow == Flow::branch) begins[kernel.code[i].target] = 1;
      if (flow == Flow::branch || flow == Flow::exit) begins[i + 1] = 1;
    }
    for (int i = 0; i < size; ++i) {
      if (begins[i]) first.push_back(i);
      block_of.push_back(int(first.size()) - 1);
    }
    exit = int(first.size());
    block_of.push_back(exit);
    successors.resize(exit + 1);
    predecessors.resize(exit + 1);
    for (int block = 0; block < exit; ++block) {
      const int last = (block + 1 < exit ? first[block + 1] : size) - 1;
      for (int next : ptx::successors(kernel, last)) {
        successors[block].push_back(block_of[next]);
        predecessors[block_of[next]].push_back(block);
      }
    }
  }

  // Blocks from which the exit is reached, the exit last, each after the ones that lead to it by `predecessors`.
  std::vector<int> postorder() const {
    std::vector<int> order;
    std::vector<char> seen(exit + 1, 0);
    std::vector<std::pair<int, size_t>> stack{{exit, 0}};
    seen[exit] = 1;
    while (!stack.empty()) {
      auto& [block, next] = stack.back();
      if (next == predecessors[block].size()) {
        order.push_back(block);
        stack.pop_back();
      } else if (const int before = predecessors[block][next++]; !seen[before]) {
        seen[before] = 1;
        stack.push_back({before, 0});
      }
    }
    return order;
  }
};

// Immediate post-dominators of blocks, -1 where the exit is not reached: Cooper, Harvey and Kennedy, "A simple, fast
// dominance algorithm", on the reversed graph.
std::vector<int> post_dominators(const Graph& graph) {
  const std::vector<int> order = graph.postorder();
  std::vector<int> rank(graph.exit + 1, -1), dominator(graph.exit + 1, -1);
  for (size_t i = 0; i < order.size(); ++i) rank[order[i]] = int(i);
  dominator[graph.exit] = graph.exit;
  const auto meet = [&](int a, int b) {
    while (a != b) {
      while (rank[a] < rank[b]) a = dominator[a];
      while (rank[b] < rank[a]) b = dominator[b];
    }
    return a;
  };
  for (bool changed = true; changed;) {
    changed = false;
    for (auto block = order.rbegin(); block != order.rend(); ++block) {
      if (*block == graph.exit) continue;
      int found = -1;
      for (int next : graph.successors[*block])
        if (dominator[next] >= 0) found = found < 0 ? next : meet(found, next);
      if (found != dominator[*block]) {
        dominator[*block] = found;
        changed = true;
      }
    }
  }
  return dominator;
}

}  // namespace

void find_joins(Kernel& kernel) {
  const Graph graph(kernel);
  const std::vector<int> dominator = post_dominators(graph);
  kernel.join.assign(kernel.code.size(), -1);
  for (size_t i = 0; i < kernel.code.size(); ++i) {
    if (kernel.code[i].flow != Flow::branch) continue;
    const int block = dominator[graph.block_of[i]];
    if (block >= 0 && block != graph.exit) kernel.join[i] = graph.first[block];
  }
}

}  // namespace ptx
