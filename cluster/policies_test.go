package cluster

import (
	"context"
	"strings"
	"testing"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	plugincel "k8s.io/apiserver/pkg/admission/plugin/cel"
	"k8s.io/apiserver/pkg/admission/plugin/policy/validating"
	"k8s.io/apiserver/pkg/admission/plugin/webhook/matchconditions"
	"k8s.io/apiserver/pkg/admission/plugin/webhook/predicates/rules"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/cel/environment"
)

var (
	nodeKind     = schema.GroupVersionKind{Version: "v1", Kind: "Node"}
	nodeResource = schema.GroupVersionResource{Version: "v1", Resource: "nodes"}
)

// loaded is one policy, compiled by the API server's own code.
type loaded struct {
	policy    *admissionregistrationv1.ValidatingAdmissionPolicy
	validator validating.Validator
}

func load(t *testing.T) []loaded {
	t.Helper()
	objects, err := Policies()
	if err != nil {
		t.Fatal(err)
	}
	bound := map[string]bool{}
	var all []loaded
	for _, object := range objects {
		switch object.GetKind() {
		case "ValidatingAdmissionPolicyBinding":
			var binding admissionregistrationv1.ValidatingAdmissionPolicyBinding
			convert(t, object.Object, &binding)
			if len(binding.Spec.ValidationActions) != 1 || binding.Spec.ValidationActions[0] != admissionregistrationv1.Deny {
				t.Errorf("binding %s does not deny", binding.Name)
			}
			bound[binding.Spec.PolicyName] = true
		case "ValidatingAdmissionPolicy":
			var policy admissionregistrationv1.ValidatingAdmissionPolicy
			convert(t, object.Object, &policy)
			if policy.Spec.FailurePolicy == nil || *policy.Spec.FailurePolicy != admissionregistrationv1.Fail {
				t.Errorf("policy %s does not fail closed", policy.Name)
			}
			all = append(all, loaded{policy: &policy, validator: compile(t, &policy)})
		}
	}
	for _, one := range all {
		if !bound[one.policy.Name] {
			t.Errorf("policy %s has no binding: it does nothing", one.policy.Name)
		}
	}
	return all
}

func convert(t *testing.T, from map[string]any, into any) {
	t.Helper()
	if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(from, into, true); err != nil {
		t.Fatal(err)
	}
}

// compile does what the admission plugin does with a policy that it has read.
func compile(t *testing.T, policy *admissionregistrationv1.ValidatingAdmissionPolicy) validating.Validator {
	t.Helper()
	compiler, err := plugincel.NewCompositedCompiler(environment.MustBaseEnvSet(environment.DefaultCompatibilityVersion()))
	if err != nil {
		t.Fatal(err)
	}
	withAuthorizer := plugincel.OptionalVariableDeclarations{HasAuthorizer: true}
	for _, variable := range policy.Spec.Variables {
		named := &validating.Variable{Name: variable.Name, Expression: variable.Expression}
		if result := compiler.CompileAndStoreVariable(named, withAuthorizer, environment.StoredExpressions); result.Error != nil {
			t.Fatalf("policy %s: variable %s: %v", policy.Name, variable.Name, result.Error)
		}
	}
	var conditions, validations, messages []plugincel.ExpressionAccessor
	for i := range policy.Spec.MatchConditions {
		conditions = append(conditions, (*matchconditions.MatchCondition)(&policy.Spec.MatchConditions[i]))
	}
	for _, validation := range policy.Spec.Validations {
		validations = append(validations, &validating.ValidationCondition{Expression: validation.Expression, Message: validation.Message, Reason: validation.Reason})
		if validation.MessageExpression != "" {
			messages = append(messages, &validating.MessageExpressionCondition{MessageExpression: validation.MessageExpression})
		} else {
			messages = append(messages, nil)
		}
	}
	for _, expression := range append(append([]plugincel.ExpressionAccessor{}, conditions...), validations...) {
		if result := compiler.CompileCELExpression(expression, withAuthorizer, environment.NewExpressions); result.Error != nil {
			t.Fatalf("policy %s: %s: %v", policy.Name, expression.GetExpression(), result.Error)
		}
	}
	matcher := matchconditions.NewMatcher(compiler.CompileCondition(conditions, withAuthorizer, environment.StoredExpressions),
		policy.Spec.FailurePolicy, "policy", "validate", policy.Name)
	return validating.NewValidator(
		compiler.CompileCondition(validations, withAuthorizer, environment.StoredExpressions),
		matcher,
		compiler.CompileCondition(nil, withAuthorizer, environment.StoredExpressions),
		compiler.CompileCondition(messages, plugincel.OptionalVariableDeclarations{}, environment.StoredExpressions),
		policy.Spec.FailurePolicy,
		nil,
	)
}

// request is one write of a Node.
type request struct {
	user        string
	groups      []string
	object      *corev1.Node
	old         *corev1.Node
	subresource string
	// may: RBAC lets the user override verdicts.
	may bool
}

// denied returns the messages of the policies that deny the request.
func denied(t *testing.T, policies []loaded, r request) []string {
	t.Helper()
	var object, old runtime.Object
	name := ""
	if r.object != nil {
		object, name = r.object, r.object.Name
	}
	if r.old != nil {
		old, name = r.old, r.old.Name
	}
	return deniedWrite(t, policies, write{user: r.user, groups: r.groups, kind: nodeKind, resource: nodeResource, subresource: r.subresource,
		name: name, object: object, old: old, may: r.may})
}

// write is one write of any object.
type write struct {
	user        string
	groups      []string
	kind        schema.GroupVersionKind
	resource    schema.GroupVersionResource
	subresource string
	name        string
	object, old runtime.Object
	may         bool
}

// Authorize answers what a policy asks of RBAC.
func (w write) Authorize(_ context.Context, a authorizer.Attributes) (authorizer.Decision, string, error) {
	if w.may && a.GetVerb() == "override" && a.GetAPIGroup() == "site.skerry.dev" && a.GetResource() == "verdicts" {
		return authorizer.DecisionAllow, "", nil
	}
	return authorizer.DecisionNoOpinion, "", nil
}

func deniedWrite(t *testing.T, policies []loaded, w write) []string {
	t.Helper()
	operation := admission.Create
	if w.old != nil {
		operation = admission.Update
	}
	if w.object == nil {
		operation = admission.Delete
	}
	if w.user == "" {
		w.user = "somebody"
	}
	attributes := admission.NewAttributesRecord(w.object, w.old, w.kind, "", w.name, w.resource, w.subresource, operation,
		nil, false, &user.DefaultInfo{Name: w.user, Groups: w.groups})
	versioned := &admission.VersionedAttributes{Attributes: attributes, VersionedKind: w.kind}
	if w.object != nil {
		versioned.VersionedObject.Set(w.object)
	}
	if w.old != nil {
		versioned.VersionedOldObject.Set(w.old)
	}
	var messages []string
	for _, one := range policies {
		if !constrained(one.policy, attributes) {
			continue
		}
		result := one.validator.Validate(context.Background(), w.resource, versioned, nil, nil, celconfig.RuntimeCELCostBudget, w)
		for _, decision := range result.Decisions {
			if decision.Evaluation == validating.EvalError {
				t.Errorf("policy %s could not be evaluated: %s", one.policy.Name, decision.Message)
			}
			if decision.Action == validating.ActionDeny {
				messages = append(messages, decision.Message)
			}
		}
	}
	return messages
}

// constrained says whether the policy's resource rules match.
func constrained(policy *admissionregistrationv1.ValidatingAdmissionPolicy, attributes admission.Attributes) bool {
	for _, rule := range policy.Spec.MatchConstraints.ResourceRules {
		matcher := rules.Matcher{Rule: rule.RuleWithOperations, Attr: attributes}
		if matcher.Matches() {
			return true
		}
	}
	return false
}

// check runs one row of a table: want is a part of the message of the denial,
// or empty if the request is allowed.
func check(t *testing.T, policies []loaded, r request, want string) {
	t.Helper()
	messages := denied(t, policies, r)
	switch {
	case want == "" && len(messages) > 0:
		t.Errorf("denied: %q", messages)
	case want != "" && !strings.Contains(strings.Join(messages, "\n"), want):
		t.Errorf("denied with %q, want a message with %q", messages, want)
	}
}

func node(change ...func(*corev1.Node)) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "east-1"}}
	for _, c := range change {
		c(n)
	}
	return n
}

func label(key, value string) func(*corev1.Node) {
	return func(n *corev1.Node) { metav1.SetMetaDataLabel(&n.ObjectMeta, key, value) }
}

func annotation(key, value string) func(*corev1.Node) {
	return func(n *corev1.Node) { metav1.SetMetaDataAnnotation(&n.ObjectMeta, key, value) }
}

func condition(kind, status string) func(*corev1.Node) {
	return func(n *corev1.Node) {
		n.Status.Conditions = append(n.Status.Conditions, corev1.NodeCondition{
			Type: corev1.NodeConditionType(kind), Status: corev1.ConditionStatus(status),
		})
	}
}
